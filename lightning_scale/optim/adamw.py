"""AdamW with moments in 8 bits."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_scale.optim import groups
from lightning_scale.optim.backends import dispatch
from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.eight_bit import EightBitOptimizer, new_step
from lightning_scale.optim.layout import Layout


class AdamW8bit(EightBitOptimizer):
    """torch's AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) with moments in block-wise 8 bits (Dettmers et al. 2021,
    arXiv 2110.02861).

    With t = 1, 2, ... the parameter's own step count, and the moments as they are read::

        m = β1 · read(m₈) + (1-β1) g;  v = β2 · read(v₈) + (1-β2) g²
        w ← w (1 - lr λ) - lr · m̂ / (√v̂ + ε),  m̂ = m / (1-β1^t),  v̂ = v / (1-β2^t)
        m₈ = round(m), v₈ = round(v)

    The step is not scaled layer by layer, and every parameter decays. The state takes 2.03 bytes for each element of a
    parameter (two codes, and two float32 scales for 256 elements). Parameters of fewer than 4,096 elements keep float32
    moments, and float64 ones float64. A step's own memory is that of about ten float32 pieces of at most 2^18 elements
    (whole tensors where they are not contiguous). Triton kernels take one pass that moves 16 bytes an element of a
    float32 parameter (w, g and two codes read; w and the codes written), 10 of a bfloat16 one.

    Args:
        params: Parameters, parameter groups, or ``named_parameters()``.
        lr: Learning rate, a number or a 0-d tensor.
        betas: Decay rates β1, β2 of the moments.
        eps: ε.
        weight_decay: λ.
        max_grad_norm: First scale all gradients so that their global L2 norm is at most this.
        master_weights: Keep float32 copies of bfloat16 and float16 parameters in the state, and step those.
        skip_nonfinite: A step with NaN or Inf in any gradient leaves weights and state as they were, and is counted in
            ``skipped_steps``.
        maximize: Step uphill.
        fused: How a step is computed. ``None``: by Triton kernels for float32, bfloat16 and float16 parameters on CUDA
            devices, where they agree with plain torch operations on a small problem that is tried first; by kernels that
            Inductor compiles once for this machine's CPU, with 2^23 elements and more in all parameters; else by plain
            torch operations. ``True``: by Triton kernels, or an error. ``False``: by plain torch operations.
            ``docs/optimizers.md`` says what each moves, and where it has been run.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        max_grad_norm: float | None = None,
        master_weights: bool = False,
        skip_nonfinite: bool = True,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "master_weights": master_weights,
            "maximize": maximize,
        }
        super().__init__(params, defaults, max_grad_norm=max_grad_norm, skip_nonfinite=skip_nonfinite, fused=fused)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        groups.non_negative("eps", group["eps"])
        group["betas"] = groups.betas(group["betas"])

    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {"step": new_step(weight), **self._new_moments(weight, layout, "exp_avg", "exp_avg_sq")}

    def _update(self, buckets: list[Bucket], decided: Guard) -> None:
        dispatch.adamw(buckets, decided)
