"""AdamW with moments in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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

    With t = 1, 2, ... the parameter's own step count, and the moments as they are read, a step computes::

        m = β1 · read(m₈) + (1-β1) g;  v = β2 · read(v₈) + (1-β2) g²
        w ← w (1 - lr λ) - lr · m̂ / (√v̂ + ε),  m̂ = m / (1-β1^t),  v̂ = v / (1-β2^t)
        m₈ = round(m), v₈ = round(v)

    The step is not scaled layer by layer, and every parameter decays. The state takes 2.03 bytes for each element of a
    parameter (two codes, and two float32 scales for 256 elements). Parameters of fewer than 4,096 elements keep float32
    moments, and float64 ones float64.

    The kernels take one pass that moves 16 bytes for each element of a float32 parameter (w, g and two codes are read, w and the
    codes written) and 10 of a bfloat16 one; the moments are never in memory in float32. The reference keeps a few float32
    tensors of at most 2^18 elements, or of a whole parameter that is not contiguous. Steps of different backends agree to
    float32's rounding, and a code may differ by one where a number lies within 4 units in the last place of the border between
    two codes.

    Args:
        params: Parameters, parameter groups, or ``named_parameters()``.
        lr: The learning rate, a number or a 0-d tensor.
        betas: The decay rates β1 and β2 of the two moments.
        eps: ε, which is added to the root of the second moment.
        weight_decay: λ, the share that every step takes off the weights, times the rate.
        max_grad_norm: First scale all gradients so that their global L2 norm is at most this.
        exclude: Patterns (``fnmatch``'s, such as ``["*.bn.*", "head.*"]``) of parameters' names in ``named_parameters()``. What
            they match has no weight decay, whatever its group says. What wrappers put into names (``_orig_mod.``) may
            be left out. A pattern that matches no parameter is an error.
        eight_bit_except: Patterns of the names of parameters that keep float32 moments, whatever their size.
        master_weights: Keep float32 copies of bfloat16 and float16 parameters in the state, and take the steps on those.
        skip_nonfinite: Leave out a step with a NaN or Inf in any gradient: weights and state stay as they were, and
            ``skipped_steps`` counts it.
        maximize: Step up the gradient, not down.
        weight_rounding: How new bfloat16 weights without masters are rounded. ``"stochastic"``: up or down at random, so that
            steps smaller than half a unit in the last place are kept in expectation; see ``docs/optimizers.md``.
        weight_rounding_seed: Gives other random numbers.
        fused: How a step on float32, bfloat16 and float16 parameters is computed. ``None``: on CUDA devices by Triton's
            kernels, where they agree with the reference on a small problem that is tried first; on CPUs by numba's, which
            are compiled once for a machine; else by the reference, which is written in plain torch and takes everything.
            ``True``: by Triton's kernels, or an error. ``False``: by the reference. ``docs/optimizers.md`` says how many
            bytes each of them moves, and where it has been run.

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
        exclude: Sequence[str] | None = None,
        eight_bit_except: Sequence[str] | None = None,
        master_weights: bool = False,
        skip_nonfinite: bool = True,
        maximize: bool = False,
        weight_rounding: Literal["nearest", "stochastic"] = "nearest",
        weight_rounding_seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "exclude": exclude,
            "master_weights": master_weights,
            "maximize": maximize,
        }
        super().__init__(
            params,
            defaults,
            eight_bit_except=eight_bit_except,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            fused=fused,
            weight_rounding=weight_rounding,
            weight_rounding_seed=weight_rounding_seed,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        groups.non_negative("eps", group["eps"])
        group["betas"] = groups.betas(group["betas"])

    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {"step": new_step(weight), **self._new_moments(weight, layout, "exp_avg", "exp_avg_sq")}

    def _update(self, buckets: list[Bucket], decided: Guard) -> None:
        dispatch.adamw(buckets, decided)
