"""LARS: SGD with momentum, scaled layer by layer; with its momentum in float32, or in 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_scale.optim import groups
from lightning_scale.optim.backends import dispatch
from lightning_scale.optim.backends.bucket import Backend, Bucket, Guard, LayerNorms
from lightning_scale.optim.backends.norms import layer_squares
from lightning_scale.optim.eight_bit import EightBitOptimizer, new_step
from lightning_scale.optim.layerwise import LayerwiseOptimizer
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.step_plan import compute_dtype


class LARS(LayerwiseOptimizer):
    """LARS (You et al. 2017, arXiv 1708.03888), the form of it that self-supervised learning uses, and that of 2019 (arXiv
    1904.00962, algorithm 1).

    ``trust_norm="gradient"`` (2017)::

        ratio = η φ(‖w‖) / (‖g‖ + λ ‖w‖ + ε)     (1 where ‖w‖ or ‖g‖ is 0)
        d = ratio · (g + λ w);  buf = μ buf + lr · d;  w ← w - buf

    ``trust_norm="decayed_gradient"`` (SimCLR, VICReg, Barlow Twins, DINO, MoCo v3, MAE, optax)::

        ratio = η φ(‖w‖) / (‖g + λ w‖ + ε)       (1 where ‖w‖ or ‖g + λ w‖ is 0); the rest as above

    ``trust_norm="momentum"`` (2019)::

        m = μ m + (1-μ) (g + λ w);  w ← w - lr · η φ(‖w‖)/‖m‖ · m

    ``docs/coming_from.md`` says which settings are other libraries' LARS.

    Args:
        params: Parameters, parameter groups, or ``named_parameters()``, whose names ``layer_stats()`` then has.
        lr: The learning rate, a number or a 0-d tensor.
        momentum: μ, the share of the momentum that each step keeps.
        weight_decay: λ, which is added to the gradient as λ w.
        trust_coefficient: η; with ``None`` it is 1 for "momentum", and 0.001 else.
        eps: ε, which "momentum" does not have.
        nesterov: Take Nesterov's step, w ← w - (lr · d + μ buf).
        lr_in_momentum: Whether the momentum has the rate in it. With ``False`` it stays outside, buf = μ buf + d and
            w ← w - lr · buf, which is the same while lr is constant and another step under a schedule.
        trust_norm: Which norm the ratio divides by: the gradient's, that of the gradient with the decay, or the momentum's.
        weight_norm_clip: The bounds (low, high) that φ keeps the numerator's ‖w‖ in; with ``None`` φ(x) = x.
        trust_ratio_clip: The bounds (low, high) that the ratio is kept in; ``None`` for none.
        trust_clip: With "larc" the ratio, after ``trust_ratio_clip``, is min(ratio / lr, 1), so that a layer's rate is the
            smaller one of lr and the ratio (apex' LARC); lr is that of the step, also where a warmup or the batch scales it.
        dampening: How much of each gradient but a parameter's first is left out of the momentum:
            buf = μ buf + (1 - dampening) lr · d, as torch's SGD has it.
        max_grad_norm: First scale all gradients so that their global L2 norm is at most this.
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
        ValueError: for an argument out of range, for ``nesterov`` without momentum or with dampening, and for ``nesterov``,
            ``dampening`` or ``lr_in_momentum=False`` with ``trust_norm="momentum"``.
    """

    _waits: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        trust_coefficient: float | None = None,
        eps: float = 1e-8,
        nesterov: bool = False,
        lr_in_momentum: bool = True,
        trust_norm: Literal["gradient", "decayed_gradient", "momentum"] = "gradient",
        weight_norm_clip: tuple[float, float] | None = None,
        trust_ratio_clip: tuple[float, float] | None = None,
        trust_clip: Literal["larc"] | None = None,
        dampening: float = 0.0,
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
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "nesterov": nesterov,
            "lr_in_momentum": lr_in_momentum,
            "trust_norm": trust_norm,
            "weight_norm_clip": weight_norm_clip,
            "trust_ratio_clip": trust_ratio_clip,
            "trust_clip": trust_clip,
            "dampening": dampening,
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
        groups.fraction("momentum", group["momentum"])
        groups.positive("trust_coefficient", group["trust_coefficient"])
        if group["trust_norm"] not in ("gradient", "decayed_gradient", "momentum"):
            raise ValueError(
                f'trust_norm is {group["trust_norm"]!r}: write "gradient", "decayed_gradient" or "momentum".'
            )
        if group["trust_clip"] not in (None, "larc"):
            raise ValueError(
                f'trust_clip is {group["trust_clip"]!r}: write "larc", None to leave it off, or trust_ratio_clip=(low, high) for'
                " bounds on the ratio itself."
            )
        groups.finite("dampening", group["dampening"])
        if group["nesterov"] and group["momentum"] == 0:
            raise ValueError("nesterov=True has no effect with momentum=0: give a momentum above 0, or nesterov=False.")
        if group["nesterov"] and group["dampening"] != 0:
            raise ValueError("nesterov=True takes no dampening: write dampening=0, or nesterov=False.")
        if group["dampening"] != 0 and not _remembers(group):
            warnings.warn("dampening is not used with momentum=0: there is nothing that it dampens.", stacklevel=2)
        one_form = group["nesterov"] or group["dampening"] != 0 or not group["lr_in_momentum"]
        if group["trust_norm"] == "momentum" and one_form:
            raise ValueError(
                'trust_norm="momentum" has one form of momentum: leave nesterov, dampening and lr_in_momentum out, or write'
                ' trust_norm="gradient".'
            )

    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        if not _remembers(group):
            return {}
        return {**_count(group, weight), "momentum_buffer": torch.zeros_like(weight, dtype=compute_dtype(weight))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of a checkpoint from before there were these
            group.setdefault("trust_clip", None)
            group.setdefault("dampening", 0.0)

    def _look(self, buckets: list[Bucket]) -> None:
        for b in buckets:
            readable = not b.in_order or all(t.is_contiguous() for t in (*b.weights, *b.params))
            if b.backend is Backend.CPU and b.group["trust_norm"] == "gradient" and readable:
                masters = b.params if b.params[0] is not b.weights[0] else None
                squares = (
                    layer_squares(b.layout, b.weights, b.at.get("weights"), masters),
                    layer_squares(b.layout, b.grads, b.at.get("grads")),
                )
                b.norms = torch.stack([own.sqrt() for own in squares])

    def _apply(self, buckets: list[Bucket], decided: Guard) -> list[LayerNorms]:
        for b in buckets:
            if b.group["dampening"] and b.remembers:
                for state in b.states:  # a momentum from before there was dampening has had its first gradient
                    if "step" not in state:
                        state["step"] = torch.ones((), dtype=torch.float32, device=state["momentum_buffer"].device)
        return dispatch.lars(buckets, decided)


class LARS8bit(EightBitOptimizer, LARS):
    """`LARS` (You et al. 2017, arXiv 1708.03888) with its momentum in block-wise 8 bits (Dettmers et al. 2021, 2110.02861).

    A step computes LARS' from the momentum as it is read, and rounds the new one to 8 bits only to keep it. The state
    takes 1.02 bytes for each element of a parameter (a code, and a float32 scale for 256 elements). Parameters of fewer
    than 4,096 elements, and float64 ones, keep the momentum that LARS keeps.

    On a GPU two passes of Triton's kernels move 22 bytes for each element of a float32 parameter (w and g are read; then w, g
    and the code are read, and w and the code written) and 12 of a bfloat16 one, and one byte more with
    ``trust_norm="momentum"``. With that, float32 momenta wait in memory on CPUs from one pass to the next: those of as many
    layers as have two million elements together (8 MB), of one larger layer, or, where ranks share the layers, of a rank's whole
    share. The optimizer keeps that memory. On the gradient's norm a step needs none.

    Steps of different backends agree to float32's rounding, and a code may differ by one where a number lies within 4 units in
    the last place of the border between two codes.

    Args:
        params: As every argument after it but the last, LARS'.
        eight_bit_except: Patterns of the names of parameters that keep a float32 momentum, whatever their size.
    """

    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        if not _remembers(group):
            return {}
        return {**_count(group, weight), **self._new_moments(weight, layout, "momentum_buffer")}


def _remembers(group: dict[str, Any]) -> bool:
    return bool(group["momentum"] != 0 or group["trust_norm"] == "momentum")


def _count(group: dict[str, Any], weight: Tensor) -> dict[str, Tensor]:
    """Return the step count, which only dampening needs: to know the first step."""
    return {"step": new_step(weight)} if group["dampening"] else {}
