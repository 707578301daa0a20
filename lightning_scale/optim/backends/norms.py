"""Norms of whole layers, the test and clip over all gradients, and the trust ratios that follow from a layer's norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_scale.optim.backends.bucket import Addresses, Bucket, Guard, TrustRatio
from lightning_scale.optim.backends.choice import takes_cpu_kernels
from lightning_scale.optim.backends.device import constant, widest
from lightning_scale.optim.layout import Layout

Array = NDArray[Any]


def over_ranks(values: Sequence[tuple[Layout, Tensor]]) -> list[Tensor]:
    """Norms over all ranks from the ranks' own (1-D, float64), in one collective for all layers that share their ranks.

    Where nothing is shared they are as they are.
    """
    norms = [own for _, own in values]
    for reduce in _reductions(layout for layout, _ in values):
        shared = [i for i, (layout, _) in enumerate(values) if layout.all_reduce == reduce]
        squares = torch.cat([norms[i].square() for i in shared])
        reduce(squares)
        for i, total in zip(shared, torch.split(squares, [norms[i].numel() for i in shared]), strict=True):
            norms[i] = total.sqrt()
    return norms


def _reductions(layouts: Iterable[Layout]) -> list[Callable[[Tensor], None]]:
    """Each once, in an order that is the same on all ranks."""
    return list(dict.fromkeys(layout.all_reduce for layout in layouts if layout.all_reduce is not None))


def guard(
    values: Sequence[tuple[Layout, list[Tensor]]],
    *,
    test_finite: bool,
    max_grad_norm: float | None,
    totals: Sequence[tuple[Layout, Tensor]] = (),
    by_kernels: bool = False,
) -> Guard:
    """Test all gradients for NaN and Inf, and find the factor that clips their global L2 norm to ``max_grad_norm``.

    The norm is over every tensor, on all ranks; the factor is ``max_grad_norm / max(norm, max_grad_norm)``.

    Args:
        values: Gradients, with their layouts.
        test_finite: Whether to test.
        max_grad_norm: What to clip to; ``None``: no clip.
        totals: Of further gradients: [2] float64, not 0 exactly where one is not finite, and the sum of their squares.
        by_kernels: Whether numba's kernels look at those on CPUs.
    """
    if not test_finite and max_grad_norm is None:
        return Guard()
    total = _over_all(values, totals, test_finite, by_kernels)
    if total is None:
        return Guard()
    finite = total[0] == 0 if test_finite else None
    if max_grad_norm is None:
        return Guard(finite)
    return Guard(finite, max_grad_norm / total[1].sqrt().clamp(min=max_grad_norm))


def global_norm(values: Sequence[tuple[Layout, list[Tensor]]]) -> Tensor:
    """The L2 norm of all gradients together, on all ranks: 0-d float64."""
    total = _over_all(values, (), test_finite=False, by_kernels=True)
    return total[1].sqrt() if total is not None else torch.zeros((), dtype=torch.float64)


def _over_all(
    values: Sequence[tuple[Layout, list[Tensor]]],
    totals: Sequence[tuple[Layout, Tensor]],
    test_finite: bool,
    by_kernels: bool,
) -> Tensor | None:
    """Whether anything is not finite (not exactly 0), and the sum of squares: [2] float64; None where there is nothing."""
    sums = list(totals)
    for layout, tensors in values:
        if by_kernels and tensors and takes_cpu_kernels(tensors):
            sums.append((layout, squares_total(layer_squares(layout, tensors))))
            continue
        views = [view for view in layout.views(tensors) if view.numel()]
        sums += [(layout, _total(batch, test_finite)) for batch in _by_kind(views)]
    layouts = [layout for layout, _ in (*values, *totals)]
    reductions = _reductions(layouts)
    if not sums and not reductions:
        return None
    device = sums[0][1].device if sums else values[0][1][0].device
    whole = [total.to(device) for layout, total in sums if layout.all_reduce is None]
    for reduce in reductions:  # also where this rank's shares are all empty
        own = [total.to(device) for layout, total in sums if layout.all_reduce == reduce]
        total = sum(own[1:], own[0]) if own else torch.zeros(2, dtype=widest(device), device=device)
        reduce(total)
        whole.append(total)
    return sum(whole[1:], whole[0])


def _total(grads: list[Tensor], test_finite: bool) -> Tensor:
    norms = torch.stack(torch._foreach_norm(grads, 2, dtype=widest(grads[0].device)))
    bad = torch.zeros((), dtype=norms.dtype, device=norms.device)
    if test_finite:
        safe = torch.finfo(norms.dtype).max ** 0.5 > torch.finfo(grads[0].dtype).max
        # Elsewhere squares may overflow where no element does.
        tested = norms if safe else torch.stack(torch._foreach_norm(grads, math.inf))
        bad = (~tested.isfinite()).sum().to(norms.dtype)
    return torch.stack([bad, norms.square().sum()])


def squares_total(squares: Tensor) -> Tensor:
    """[2] float64, as `guard` takes it, from float64 sums of squares, 1-D."""
    return torch.stack([(~squares.isfinite()).sum().double(), squares.sum()])


def layer_squares(
    layout: Layout, tensors: Sequence[Tensor], at: Addresses | None = None, params: Sequence[Tensor] | None = None
) -> Tensor:
    """[layers] float64: Σ x² of this rank's share of each layer, of tensors that `takes_cpu_kernels`; ``at``: their addresses;
    ``params``: the parameters whose masters they are.
    """
    from lightning_scale.optim.backends.cpu.launch import layer_squares

    return layer_squares(layout, tensors, at, params)


def _by_kind(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Tensors gathered by device and dtype, for multi-tensor operations take one kind at a time."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for t in tensors:
        kinds.setdefault((t.device, t.dtype), []).append(t)
    return list(kinds.values())


def nonfinite(layers: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
    """Whether some element is NaN or Inf, without waiting for a device: [layers] bool.

    Args:
        layers: Of each layer: the tensors that hold it; there may be none, and they may be empty.
        device: Of the answer.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
    for number, tensors in enumerate(layers):
        for t in tensors:
            if t.numel():
                kinds.setdefault((t.device, t.dtype), []).append((number, t))
    found: list[list[Tensor]] = [[] for _ in layers]
    for numbered in kinds.values():
        largest = torch.stack(torch._foreach_norm([t for _, t in numbered], math.inf))
        for (number, _), bad in zip(numbered, (~largest.isfinite()).to(device).unbind(), strict=True):
            found[number].append(bad)
    none = torch.zeros((), dtype=torch.bool, device=device)
    each = [none if not bad else bad[0] if len(bad) == 1 else torch.stack(bad).any() for bad in found]
    return torch.stack(each) if each else torch.zeros(0, dtype=torch.bool, device=device)


def trust_coefficient(group: Mapping[str, Any]) -> float:
    """LARS' η."""
    if group["trust_coefficient"] is not None:
        return float(group["trust_coefficient"])
    return 1.0 if group["trust_norm"] == "momentum" else 0.001


def lamb_ratio(bucket: Bucket, weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """LAMB's: φ(‖w‖) / ‖u‖ of each layer, 1-D."""
    return _trust_ratio(weight_norm, update_norm, bucket.trust, update_norm)


def lars_ratio(bucket: Bucket, weight_norm: Tensor, other_norm: Tensor) -> Tensor:
    """LARS': η φ(‖w‖) / (‖g‖ + λ ‖w‖ + ε), η φ(‖w‖) / (‖g + λ w‖ + ε), or η φ(‖w‖) / ‖m‖ of each layer, 1-D."""
    denominator = other_norm
    if bucket.group["trust_norm"] == "gradient":
        decay = constant(bucket.layout, "decays", bucket.weight_decay, weight_norm.dtype, weight_norm.device)
        denominator = other_norm + decay * weight_norm + bucket.group["eps"]
    elif bucket.group["trust_norm"] == "decayed_gradient":
        denominator = other_norm + bucket.group["eps"]
    lr = bucket.lr if bucket.trust.larc else None
    return _trust_ratio(weight_norm, other_norm, bucket.trust, denominator, trust_coefficient(bucket.group), lr)


def _trust_ratio(
    weight_norm: Tensor,
    update_norm: Tensor,
    rule: TrustRatio,
    denominator: Tensor,
    coefficient: float = 1.0,
    lr: Tensor | None = None,
) -> Tensor:
    """``coefficient · φ(‖w‖) / denominator``, clipped; 1 where a norm is 0 or the layer is excluded.

    Args:
        weight_norm: ‖w‖ of each layer, 1-D.
        update_norm: The other norm of each layer, only to see where it is 0.
        rule: Which layers adapt, and the clips.
        denominator: What φ(‖w‖) is divided by.
        coefficient: A constant factor.
        lr: The rate that LARC's clip compares the ratio with, where there is one.
    """
    if weight_norm.device.type == "cpu":
        # By numpy, which takes a microsecond for an operation where torch takes many.
        w, n, adapt, below = (t.numpy() for t in (weight_norm, update_norm, rule.adapt, denominator))
        rate = None if lr is None else lr.numpy()
        return torch.from_numpy(ratio_by_numpy(w, n, adapt, below, rule, coefficient, rate))
    phi = weight_norm.clamp(*rule.weight_norm_clip) if rule.weight_norm_clip else weight_norm
    value = coefficient * phi / denominator
    if rule.clip:
        value = value.clamp(*rule.clip)
    if lr is not None:  # the ratio is compared before it is divided: a rate of 0 makes no NaN
        value = torch.where(value >= lr, torch.ones_like(value), value / lr)
    adapts = rule.adapt & (weight_norm > 0) & (update_norm > 0)
    return torch.where(adapts, value, torch.ones_like(value))


def ratio_by_numpy(
    weight_norm: Array,
    update_norm: Array,
    adapt: Array,
    denominator: Array,
    rule: TrustRatio,
    coefficient: float,
    lr: Array | None = None,
) -> Array:
    """What `_trust_ratio` says, on numbers of the host."""
    phi = weight_norm.clip(*rule.weight_norm_clip) if rule.weight_norm_clip else weight_norm
    with np.errstate(all="ignore"):
        value = weight_norm.dtype.type(coefficient) * phi / denominator
    if rule.clip:
        value = value.clip(*rule.clip)
    if lr is not None:
        with np.errstate(all="ignore"):
            value = np.where(value >= lr, value.dtype.type(1), value / lr)
    adapts = adapt & (weight_norm > 0) & (update_norm > 0)
    chosen: Array = np.where(adapts, value, value.dtype.type(1))
    return chosen
