"""SGD with its momentum in 8 bits."""

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


class SGD8bit(EightBitOptimizer):
    """torch's SGD with momentum, kept in block-wise 8 bits (Dettmers et al. 2021, arXiv 2110.02861).

    With the momentum as it is read, a step computes::

        d = g + λ w;  buf = μ · read(buf₈) + (1 - dampening) d, and buf = d at a parameter's first gradient
        w ← w - lr · buf;  buf₈ = round(buf)

    The state takes 1.02 bytes for each element of a parameter (a code, and a float32 scale for 256 elements). Parameters
    of fewer than 4,096 elements keep a float32 momentum, and float64 ones one in float64.

    The kernels take one pass that moves 14 bytes for each element of a float32 parameter (w, g and the code are read, w and the
    code written) and 8 of a bfloat16 one; the momentum is never in memory in float32. The reference keeps a few float32
    tensors of at most 2^18 elements, or of a whole parameter that is not contiguous. Steps of different backends agree to
    float32's rounding, and a code may differ by one where a number lies within 4 units in the last place of the border between
    two codes.

    Args:
        params: Parameters, parameter groups, or ``named_parameters()``.
        lr: The learning rate, a number or a 0-d tensor.
        momentum: μ, the share of the momentum that each step keeps; with 0 there is no state.
        dampening: How much of each gradient but the first is left out of the momentum.
        weight_decay: λ, added to the gradient.
        nesterov: Take Nesterov's step, w ← w - lr · (d + μ buf).
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
        ValueError: for an argument out of range, and for ``nesterov`` without momentum or with dampening.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
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
        groups.fraction("momentum", group["momentum"])
        groups.finite("dampening", group["dampening"])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "nesterov=True needs a momentum above 0 and no dampening: give a momentum and dampening=0, or"
                " nesterov=False."
            )

    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        if group["momentum"] == 0:
            return {}
        return {"step": new_step(weight), **self._new_moments(weight, layout, "momentum_buffer")}

    def _update(self, buckets: list[Bucket], decided: Guard) -> None:
        dispatch.sgd(buckets, decided)
