"""The optimizers' arithmetic, over buckets of local tensors; which implementation runs is decided here."""

from __future__ import annotations

from lightning_scale.optim.kernels.reference_lamb import lamb
from lightning_scale.optim.kernels.reference_lars import lars

__all__ = ["check_fused", "lamb", "lars"]


def check_fused(fused: bool | None) -> None:
    """Refuse ``fused=True`` where no fused kernel can run.

    Raises:
        ValueError: always for ``True``: this version has the plain torch operations only.
    """
    if fused:
        raise ValueError(
            "fused=True asks for Triton kernels, which this version of lightning_scale does not have: leave fused out,"
            " or write fused=False for the plain torch operations."
        )
