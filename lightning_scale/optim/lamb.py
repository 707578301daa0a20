"""LAMB: Adam's direction, scaled layer by layer; with moments in float32, or in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_scale.optim import groups
from lightning_scale.optim.backends import dispatch
from lightning_scale.optim.backends.bucket import Bucket, Guard, LayerNorms
from lightning_scale.optim.eight_bit import EightBitOptimizer, new_step
from lightning_scale.optim.layerwise import LayerwiseOptimizer
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.step_plan import compute_dtype


class LAMB(LayerwiseOptimizer):
    """LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2).

    With t = 1, 2, ... the parameter's own step count, a step computes::

        m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²
        u = m̂ / (√v̂ + ε) + λ w,  m̂ = m / (1-β1^t),  v̂ = v / (1-β2^t)
        w ← w - lr · φ(‖w‖)/‖u‖ · u      (ratio 1 where ‖w‖ or ‖u‖ is 0)

    The ratio's norms are those of the whole layer, also where ranks share it. On CPUs the float32 updates of as many small
    layers as have two million elements together (8 MB), or of one larger layer, wait in memory between the two passes of a
    step, and where ranks share the layers those of all of a rank's share. The optimizer keeps that memory.

    Args:
        params: Parameters, parameter groups, or ``named_parameters()``, whose names ``layer_stats()`` then has.
        lr: The learning rate, a number or a 0-d tensor.
        betas: The decay rates β1 and β2 of the two moments.
        eps: ε, which is added to the root of the second moment.
        weight_decay: λ, the weight decay inside of the update.
        bias_correction: Whether the moments are divided by 1-β^t; with ``False`` m̂ = m and v̂ = v.
        weight_norm_clip: The bounds (low, high) that φ keeps ‖w‖ in; with ``None`` φ(x) = x.
        trust_ratio_clip: The bounds (low, high) that the ratio is kept in; ``None`` for none.
        max_grad_norm: First scale all gradients so that their global L2 norm is at most this (NVLAMB).
        exclude_1d: Give parameters of one dimension or fewer (biases, norms, and weight_norm's lengths of rows) no weight decay
            and the ratio 1, unless their group says another ``weight_decay``, or ``layer_adaptation``, itself.
        exclude: Patterns (``fnmatch``'s, such as ``["*.bn.*", "head.*"]``) of parameters' names in ``named_parameters()``. What
            they match has no weight decay and the ratio 1, whatever its group says. What wrappers put into names
            (``_orig_mod.``) may be left out. A pattern that matches no parameter is an error.
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

    _waits: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        weight_norm_clip: tuple[float, float] | None = None,
        trust_ratio_clip: tuple[float, float] | None = None,
        max_grad_norm: float | None = None,
        exclude_1d: bool = True,
        exclude: Sequence[str] | None = None,
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
            "bias_correction": bias_correction,
            "weight_norm_clip": weight_norm_clip,
            "trust_ratio_clip": trust_ratio_clip,
            "exclude_1d": exclude_1d,
            "exclude": exclude,
            "master_weights": master_weights,
            "maximize": maximize,
        }
        super().__init__(
            params,
            defaults,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            fused=fused,
            weight_rounding=weight_rounding,
            weight_rounding_seed=weight_rounding_seed,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        group["betas"] = groups.betas(group["betas"])

    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=weight.device),
            "exp_avg": torch.zeros_like(weight, dtype=compute_dtype(weight)),
            "exp_avg_sq": torch.zeros_like(weight, dtype=compute_dtype(weight)),
        }

    def _apply(self, buckets: list[Bucket], decided: Guard) -> list[LayerNorms]:
        return dispatch.lamb(buckets, decided)


class LAMB8bit(EightBitOptimizer, LAMB):
    """`LAMB` (You et al. 2019, arXiv 1904.00962) with moments in block-wise 8 bits (Dettmers et al. 2021, 2110.02861).

    A step computes LAMB's from the moments as they are read, and rounds the new ones to 8 bits only to keep them::

        m = β1 · read(m₈) + (1-β1) g;  v = β2 · read(v₈) + (1-β2) g²
        u, ratio and w as LAMB's, from these m and v;  m₈ = round(m), v₈ = round(v)

    The ratio's ‖u‖ is that of the whole layer's unrounded u. The state takes 2.03 bytes for each element of a parameter
    (two codes, and two float32 scales for 256 elements). Parameters of fewer than 4,096 elements, and float64 ones, keep
    the moments that LAMB keeps.

    On a GPU two passes of Triton's kernels move 26 bytes for each element of a float32 parameter (w, g and two codes are read
    twice, and w and the codes written once) and 16 of a bfloat16 one. On CPUs the updates wait in float32, as LAMB's do.
    The moments themselves are never in memory in float32. Steps of different backends agree to float32's rounding, and a code
    may differ by one where a number lies within 4 units in the last place of the border between two codes.

    Args:
        params: As every argument after it but the last, LAMB's.
        eight_bit_except: Patterns of the names of parameters that keep float32 moments, whatever their size.
    """

    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {"step": new_step(weight), **self._new_moments(weight, layout, "exp_avg", "exp_avg_sq")}
