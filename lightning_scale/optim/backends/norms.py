"""Norms of whole layers over segments, and the test and clip over all gradients. Plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Guard
from lightning_scale.optim.backends.device import dense, in_memory_order, layers_of_segments, widest
from lightning_scale.optim.layout import Layout

# Sums of float32 squares one after the other lose 1e-5 of a norm at a million elements and 6e-3 at 67 million; by rows of
# this length, added up in float64, 3e-9.
_ROW = 4096

# Below it, squares of float32 elements may be lost to underflow; at it, what a million million of them lose is nothing.
_SMALLEST_SURE_NORM = 1e-12


def l2_norms(tensors: list[Tensor]) -> Tensor:
    """L2 norm of each tensor, 1-D float64: of float32 tensors right for all their values, and finite where those are. Float32 on
    devices without float64, and infinite there above 1.8e19.

    Args:
        tensors: At least one; all of one device and floating-point dtype.
    """
    if not _may_look(tensors[0].device):
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=widest(tensors[0].device)))
    # On a CPU sums in float64 take four times as long, so only where float32 is not sure.
    first = torch.promote_types(tensors[0].dtype, torch.float32)
    norms = torch.empty(len(tensors), dtype=torch.float64, device="cpu")
    values = norms.numpy()  # the same memory: torch takes many times as long to put a few numbers in their places
    short: list[int] = []
    by_rows: list[int] = []
    strided: list[int] = []
    for i, t in enumerate(tensors):
        (short if t.numel() < 2 * _ROW else by_rows if dense(t) else strided).append(i)
    if by_rows:
        values[by_rows] = _norms_by_rows([in_memory_order(tensors[i]) for i in by_rows], first).numpy()
    for i in strided:
        values[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64).item()
    if short:
        values[short] = torch.stack(torch._foreach_norm([tensors[i] for i in short], 2, dtype=first)).numpy()
    unsure = np.flatnonzero(~(np.isfinite(values) & (values >= _SMALLEST_SURE_NORM))).tolist()
    if unsure and tensors[0].dtype != torch.float64:
        again = torch._foreach_norm([tensors[i] for i in unsure], 2, dtype=torch.float64)
        values[unsure] = torch.stack(again).numpy()
    return norms


def _norms_by_rows(flat: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Of 1-D tensors of a row and more; between them nothing but the sums over rows, for caches are empty then."""
    counts = [-(-t.numel() // _ROW) for t in flat]
    norms = torch.empty(sum(counts), dtype=dtype, device="cpu")
    for t, rows in zip(flat, torch.split(norms, counts), strict=True):
        whole = t.numel() // _ROW
        torch.linalg.vector_norm(t[: whole * _ROW].view(-1, _ROW), dim=1, dtype=dtype, out=rows[:whole])
        if whole < len(rows):
            torch.linalg.vector_norm(t[whole * _ROW :], dtype=dtype, out=rows[whole])
    return torch.stack([part.sum() for part in torch.split(norms.double().square(), counts)]).sqrt()


def _may_look(device: torch.device) -> bool:
    """Whether to look at a number costs nothing; elsewhere the host would wait for the device."""
    return device.type == "cpu"


def own_norms(layout: Layout, *lists: list[Tensor]) -> Tensor:
    """This rank's share of each layer's L2 norm, in float64: in float32, squares would overflow where the norm does not.

    Args:
        layout: Where the layers lie.
        lists: Local tensors that it describes: weights, say, and their updates.

    Returns:
        [lists, layers].
    """
    shape = len(lists), len(layout.layers)
    if not layout.segments:
        device = lists[0][0].device if lists[0] else torch.device("cpu")
        return torch.zeros(shape, dtype=widest(device), device=device)
    parts = l2_norms([view for tensors in lists for view in layout.views(tensors)]).view(len(lists), -1)
    if layout.whole:
        return parts
    layers = layers_of_segments(layout, parts.device)
    squares = torch.zeros(shape, dtype=parts.dtype, device=parts.device)
    return squares.index_add_(1, layers, parts.square()).sqrt()


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
) -> Guard:
    """Test all gradients for NaN and Inf, and find the factor that clips their global L2 norm to ``max_grad_norm``.

    The norm is over every tensor, on all ranks; the factor is ``max_grad_norm / max(norm, max_grad_norm)``.

    Args:
        values: Gradients, with their layouts.
        test_finite: Whether to test.
        max_grad_norm: What to clip to; ``None``: no clip.
        totals: Of further gradients: [2] float64, not 0 exactly where one is not finite, and the sum of their squares.
    """
    if not test_finite and max_grad_norm is None:
        return Guard()
    total = _over_all(values, totals, test_finite)
    if total is None:
        return Guard()
    finite = total[0] == 0 if test_finite else None
    if max_grad_norm is None:
        return Guard(finite)
    return Guard(finite, max_grad_norm / total[1].sqrt().clamp(min=max_grad_norm))


def global_norm(values: Sequence[tuple[Layout, list[Tensor]]]) -> Tensor:
    """The L2 norm of all gradients together, on all ranks: 0-d float64."""
    total = _over_all(values, (), test_finite=False)
    return total[1].sqrt() if total is not None else torch.zeros((), dtype=torch.float64)


def _over_all(
    values: Sequence[tuple[Layout, list[Tensor]]], totals: Sequence[tuple[Layout, Tensor]], test_finite: bool
) -> Tensor | None:
    """Whether anything is not finite (not exactly 0), and the sum of squares: [2] float64; None where there is nothing."""
    sums = list(totals)
    for layout, tensors in values:
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
    norms = l2_norms(grads)
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
