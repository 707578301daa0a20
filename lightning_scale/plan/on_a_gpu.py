"""Layers on the CPU computed in the types, and with the attention, that they have on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_NAMES = (
    "softmax log_softmax softmin layer_norm group_norm cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss kl_div"
    " binary_cross_entropy_with_logits cosine_similarity cosine_embedding_loss softplus pow __pow__ __rpow__ exp expm1 log"
    " log10 log2 log1p reciprocal rsqrt sum prod cumsum cumprod norm dist cdist pdist renorm sinh cosh tan acos asin erfinv"
)
_IN_FLOAT32 = {getattr(home, name) for home in (torch, Tensor, F) for name in _NAMES.split() if hasattr(home, name)}
"""What CUDA's autocast computes in float32 (https://docs.pytorch.org/docs/stable/amp.html); the CPU's leaves most of it."""


@contextmanager
def as_on_a_gpu(gpu: bool) -> Iterator[None]:
    """Within, autocast takes float32 where CUDA's does, and attention with dropout is one operation that keeps no matrix.

    Args:
        gpu: Do nothing unless it is set.
    """
    original = F.scaled_dot_product_attention

    def without_dropout(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **more: Any
    ) -> Tensor:
        return original(query, key, value, attn_mask=attn_mask, **more)

    if not gpu:
        yield
        return
    F.scaled_dot_product_attention = without_dropout  # type: ignore[assignment]
    try:
        with _Float32():
            yield
    finally:
        F.scaled_dot_product_attention = original


class _Float32(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_widened, (args, kwargs))
        return func(*args, **kwargs)


def _widened(item: Any) -> Any:
    low = isinstance(item, Tensor) and item.dtype in (torch.bfloat16, torch.float16)
    return item.float() if low else item
