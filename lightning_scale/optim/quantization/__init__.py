"""Numbers in 8 bits: the dynamic code of Dettmers et al. 2021 (arXiv 2110.02861), block by block."""

from __future__ import annotations

from lightning_scale.optim.quantization.blockwise import (
    BLOCK,
    block_count,
    blocks,
    dequantize,
    quantize,
    with_one_scale,
)
from lightning_scale.optim.quantization.code import SIGNED, UNSIGNED, Code, nearest_by_arithmetic, nearest_by_search

__all__ = [
    "BLOCK",
    "SIGNED",
    "UNSIGNED",
    "Code",
    "block_count",
    "blocks",
    "dequantize",
    "nearest_by_arithmetic",
    "nearest_by_search",
    "quantize",
    "with_one_scale",
]
