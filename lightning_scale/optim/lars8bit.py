"""LARS with its momentum in 8 bits."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lightning_scale.optim import kernels
from lightning_scale.optim.eight_bit import EightBitOptimizer
from lightning_scale.optim.gather import Gathered
from lightning_scale.optim.kernels.eight_bit.work import CodedLarsBucket
from lightning_scale.optim.kernels.work import Guard, LayerNorms
from lightning_scale.optim.lars import LARS
from lightning_scale.optim.layout import Layout


class LARS8bit(EightBitOptimizer, LARS):
    """`LARS` (You et al. 2017, arXiv 1708.03888) with its momentum in block-wise 8 bits (Dettmers et al. 2021, 2110.02861).

    A step computes LARS' from the momentum as it is read, and rounds the new one to 8 bits only to keep it. The state
    takes 1.02 bytes for each element of a parameter (a code, and a float32 scale for 256 elements). Parameters of fewer
    than 4,096 elements, and float64 ones, keep the momentum that LARS keeps. A step's own memory is that of about ten
    float32 pieces of at most 2^18 elements (whole tensors where they are not contiguous).

    Two passes of Triton kernels move 22 bytes an element of a float32 parameter (w and g read; then w, g
    and the code read, w and the code written), 12 of a bfloat16 one, and one more for the momentum's norm. Codes are the
    plain operations' bit for bit; norms are summed in float64 in both.

    Args:
        params: As all that follows, LARS'.
    """

    _exact_norms: ClassVar[bool] = True  # the ratio, and with it the codes, hang on them

    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        return self._new_moments(weight, layout, "momentum_buffer") if _remembers(group) else {}

    def _apply(self, gathered: list[Gathered], decided: Guard) -> list[LayerNorms]:
        return kernels.lars8bit([self._coded_bucket(g) for g in gathered], decided)

    def _coded_bucket(self, g: Gathered) -> CodedLarsBucket:
        group = g.group
        keys = ("momentum_buffer",) if _remembers(group) else ()
        return CodedLarsBucket(
            **self._common(g, *keys),
            weight_decay=g.decays(),
            trust=g.trust(),
            momentum=group["momentum"],
            trust_coefficient=self._coefficient(group),
            eps=group["eps"],
            nesterov=group["nesterov"],
            lr_in_momentum=group["lr_in_momentum"],
            momentum_norm=group["trust_norm"] == "momentum",
            momentum_buffer=self._moments(g, "momentum_buffer") if _remembers(group) else [],
            norms=g.norms,
        )


def _remembers(group: dict[str, Any]) -> bool:
    return bool(group["momentum"] != 0 or group["trust_norm"] == "momentum")
