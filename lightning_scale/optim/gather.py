"""From a parameter group to buckets: tensors of one device and compute dtype, in the form the kernels take."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.kernels.work import TrustRatio
from lightning_scale.optim.layout import Layout, whole_layout


@dataclass
class Gathered:
    """Parallel lists for the parameters of one group, device and compute dtype that have a gradient."""

    group: dict[str, Any]
    names: list[str] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    fused: bool = False
    """For the Triton kernels: weights and gradients as they are."""
    compiled: bool = False
    """For the compiled CPU kernels: weights and gradients as they are, contiguous."""
    norms: Tensor | None = None
    """[2, L] float64 ‖w‖ and ‖g‖, where a look at the gradients has found both."""

    @cached_property
    def layout(self) -> Layout:
        return whole_layout(self.names, self.params)

    def state(self, key: str) -> list[Tensor]:
        """One kind of state of every parameter; empty where the group keeps none of that kind."""
        return [state[key] for state in self.states if key in state]

    def common(self) -> dict[str, Any]:
        """The fields that every bucket has."""
        like, lr = self.weights[0], self.group["lr"]
        return {
            "layout": self.layout,
            "params": self.params,
            "weights": self.weights,
            "grads": self.grads,
            "lr": lr.to(like.device, compute_dtype(like)) if isinstance(lr, Tensor) else lr,
            "weight_decay": self.decays(),
            "trust": self.trust(),
            "fused": self.fused,
            "compiled": self.compiled,
            "maximize": self.group["maximize"],
        }

    def decays(self) -> list[float]:
        """The weight decay of each layer."""
        return [_decay(self.group, layer.ndim) for layer in self.layout.layers]

    def trust(self) -> TrustRatio:
        """How the layers' ratios are made."""
        adapts = [_adapts(self.group, layer.ndim) for layer in self.layout.layers]
        return TrustRatio(
            adapt=torch.tensor(adapts, device=self.weights[0].device),
            weight_norm_clip=self.group["weight_norm_clip"],
            clip=self.group["trust_ratio_clip"],
        )


def gather(
    group: dict[str, Any],
    number: int,
    state: MutableMapping[Tensor, dict[str, Tensor]],
    init_state: Callable[[dict[str, Any], Tensor], dict[str, Tensor]],
    convert: bool = True,
    fused: Callable[[Tensor], bool] = lambda p: False,
    compiled: Callable[[Tensor], bool] = lambda p: False,
) -> list[Gathered]:
    """The buckets of one parameter group; state is made for parameters that have none.

    Args:
        group: The group.
        number: Its place, for the names of unnamed parameters.
        state: The optimizer's state.
        init_state: Makes a new parameter's state from the group and what the step is computed on.
        convert: Give weights and gradients in compute dtype, the gradients negated where the step goes uphill; ``False``:
            as they are, for kernels that do it piece by piece.
        fused: Which parameters go to the Triton kernels, as they are; those of one bucket then have the same types too.
        compiled: Which parameters go to the compiled CPU kernels, likewise.
    """
    buckets: dict[tuple[Any, ...], Gathered] = {}
    names = group.get("param_names") or [f"{number}.{i}" for i in range(len(group["params"]))]
    for name, p in zip(names, group["params"], strict=True):
        if p.grad is None:
            continue
        refuse_unsupported(p)
        compute = compute_dtype(p)
        own = state[p]
        if group["master_weights"] and p.dtype != compute and "master" not in own:
            own["master"] = p.detach().to(compute, copy=True)
        by_kernels = fused(p)
        by_compiled = not by_kernels and compiled(p)
        as_is = by_kernels or by_compiled or not convert
        weight = own["master"] if "master" in own else p if as_is or p.dtype == compute else p.detach().to(compute)
        if not own.keys() - {"master"}:
            own.update(init_state(group, weight))
        kind = (p.dtype, p.grad.dtype, "master" in own, by_compiled) if by_kernels or by_compiled else ()
        bucket = buckets.setdefault((p.device, compute, *kind), Gathered(group, fused=by_kernels, compiled=by_compiled))
        grad = p.grad if as_is else p.grad.to(compute)
        if by_kernels:  # its kernels go through memory, so everything must lie as the parameter does
            grad = _lying_as(p, grad)
            for key, value in own.items():
                own[key] = _lying_as(p, value)
            weight = own.get("master", p)
        if by_compiled:
            grad = grad.contiguous()
            own.update({key: value.contiguous() for key, value in own.items() if not value.is_contiguous()})
            weight = own.get("master", p)
        bucket.names.append(name)
        bucket.params.append(p)
        bucket.weights.append(weight)
        bucket.grads.append(-grad if group["maximize"] and not as_is else grad)
        bucket.states.append(own)
    return list(buckets.values())


def refuse_unsupported(p: Tensor) -> None:
    """Raises ValueError for a parameter or gradient that the kernels do not take."""
    if p.is_complex():
        raise ValueError("complex parameters are not supported: give torch.view_as_real() of them.")
    if p.layout != torch.strided or (p.grad is not None and p.grad.layout != torch.strided):
        raise ValueError("sparse parameters and gradients are not supported: build the layer with sparse=False.")
    if type(p.data).__name__ == "DTensor":
        raise ValueError(
            "parameters sharded as DTensors (FSDP2) are not supported in this version, for a shard's norm is not its"
            " layer's: use the DDP strategy."
        )


def _lying_as(p: Tensor, t: Tensor) -> Tensor:
    """A tensor of the parameter's shape with its strides: itself, or a copy; others as they are."""
    if t.shape != p.shape or t.stride() == p.stride():
        return t
    return torch.empty_like(p, dtype=t.dtype).copy_(t)


def compute_dtype(t: Tensor) -> torch.dtype:
    """What steps are computed in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _adapts(group: dict[str, Any], ndim: int) -> bool:
    own = group["layer_adaptation"]
    return bool(own) if own is not None else not (group["exclude_1d"] and ndim <= 1)


def _decay(group: dict[str, Any], ndim: int) -> float:
    return float(group["weight_decay"]) if ndim > 1 or group["decay_1d"] else 0.0
