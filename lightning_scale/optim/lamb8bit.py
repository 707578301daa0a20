"""LAMB with moments in 8 bits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_scale.optim import kernels
from lightning_scale.optim.eight_bit import EightBitOptimizer, new_step
from lightning_scale.optim.gather import Gathered
from lightning_scale.optim.kernels.eight_bit.work import CodedLambBucket
from lightning_scale.optim.kernels.work import Guard, LayerNorms
from lightning_scale.optim.lamb import LAMB
from lightning_scale.optim.layout import Layout


class LAMB8bit(EightBitOptimizer, LAMB):
    """`LAMB` (You et al. 2019, arXiv 1904.00962) with moments in block-wise 8 bits (Dettmers et al. 2021, 2110.02861).

    A step computes LAMB's from the moments as they are read, and rounds the new ones to 8 bits only to keep them::

        m = β1 · read(m₈) + (1-β1) g;  v = β2 · read(v₈) + (1-β2) g²
        u, ratio and w as LAMB's, from these m and v;  m₈ = round(m), v₈ = round(v)

    The ratio's ‖u‖ is that of the whole layer's unrounded u. The state takes 2.03 bytes for each element of a parameter
    (two codes, and two float32 scales for 256 elements). Parameters of fewer than 4,096 elements, and float64 ones, keep
    the moments that LAMB keeps. A step's own memory is that of about ten float32 pieces of at most 2^18 elements
    (whole tensors where they are not contiguous).

    Two passes of Triton kernels move 26 bytes an element of a float32 parameter (twice w, g and two codes
    read; then w and the codes written), 16 of a bfloat16 one; no float32 moment ever is in memory. Codes are the plain
    operations' bit for bit; norms are summed in float64 in both.

    Args:
        params: As all that follows, LAMB's.
    """

    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {"step": new_step(weight), **self._new_moments(weight, layout, "exp_avg", "exp_avg_sq")}

    def _apply(self, gathered: list[Gathered], decided: Guard) -> list[LayerNorms]:
        return kernels.lamb8bit(
            [
                CodedLambBucket(
                    **self._common(g, "exp_avg", "exp_avg_sq"),
                    weight_decay=g.decays(),
                    trust=g.trust(),
                    betas=g.group["betas"],
                    eps=g.group["eps"],
                    bias_correction=g.group["bias_correction"],
                    steps=g.state("step"),
                    exp_avg=self._moments(g, "exp_avg"),
                    exp_avg_sq=self._moments(g, "exp_avg_sq"),
                )
                for g in gathered
            ],
            decided,
        )
