"""Before Triton kernels are used unasked: do they take the reference's step on this device?

Kernels are compiled anew for every GPU, driver and version of Triton. A small problem that both solve costs less than a
training run that a compiler has got wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_scale.optim.backends.bucket import IncompleteStep

# Several chunks and a rest, vectors, a scalar, another memory format.
_SHAPES = ((200, 211), (64, 64), (33,), (), (4, 3, 5, 2))
_STEPS = 2
# Of the largest element: float32 rounds about 25 times a step, and lower precisions round the result to either side.
_TOLERANCE = {torch.float32: 2.0**-15, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
# 8-bit codes on the border of two: by one, and few.
_FLIPPED = 0.01

_known: dict[tuple[Any, ...], bool] = {}
_tried: set[tuple[Any, ...]] = set()


@dataclass(frozen=True)
class Where:
    """The things that decide which kernels are compiled, beside the optimizer's options."""

    device: torch.device
    dtype: torch.dtype
    gradient: torch.dtype
    shared: bool
    """Whether other ranks may hold a share of the layers."""


def triton_is_right(optimizer: Any, p: Tensor) -> bool:
    """Return whether the optimizer's Triton kernels agree with the reference where a parameter lives.

    This is found out once in a process for each kind of optimizer and of kernels. Where they do not agree, one warning says so.

    Args:
        optimizer: The optimizer whose class and defaults are tried.
        p: A parameter with its gradient.
    """
    where = where_of(optimizer, p)
    key = (_kind(optimizer), where, _form(optimizer))
    if key not in _known:
        reason = _disagreement(optimizer, where)
        _known[key] = reason is None
        if reason is not None:
            warnings.warn(
                f"{type(optimizer).__name__} runs on plain torch operations, which are slower: its Triton kernels"
                f" {reason} on {p.device} (torch {torch.__version__}). Write fused=False to run without this test, or"
                " fused=True to see the error.",
                stacklevel=2,
            )
    return _known[key]


def where_of(optimizer: Any, p: Tensor) -> Where:
    """Return what decides about the kernels for a parameter with its gradient."""
    gradient = p.grad.dtype if p.grad is not None else p.dtype
    return Where(p.device, p.dtype, gradient, optimizer._plan.layout_of(p).all_reduce is not None)


def _disagreement(optimizer: Any, where: Where) -> str | None:
    """Return the words for what went wrong, or None where nothing did."""
    try:
        ours = _in_one_launch_or_two(optimizer, where)
        theirs = after_some_steps(optimizer, False, where)
    except Exception as error:  # whatever a compiler or a driver throws, the plain operations serve
        return f"failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
    return None if all(map(_agree, ours, theirs)) else "gave another step than they should"


def try_waiting(optimizer: Any, p: Tensor) -> None:
    """Let LAMB and LARS take two launches where a parameter lives, if waiting inside one fails there.

    `triton_is_right` does it, too; this is for ``fused=True``, which asks for no proof. It raises what the kernels raise.
    """
    where = where_of(optimizer, p)
    if optimizer._waits and not where.shared and (_kind(optimizer), where.device) not in _tried:
        _in_one_launch_or_two(optimizer, where)


def _in_one_launch_or_two(optimizer: Any, where: Where) -> list[Tensor]:
    """Solve the small problem by Triton kernels, a second time in two launches if waiting inside one did not end."""
    if not where.shared:
        _tried.add((_kind(optimizer), where.device))
    try:
        return after_some_steps(optimizer, True, where)
    except IncompleteStep:
        from lightning_scale.optim.backends.triton.turns import one_launch_fails

        one_launch_fails.add(where.device)
        warnings.warn(
            f"{type(optimizer).__name__} takes its two passes in two launches, which is slower: in one, the second waited for the"
            f" first in vain on {where.device} (torch {torch.__version__}). Please report this.",
            stacklevel=2,
        )
        return after_some_steps(optimizer, True, where)


def _form(optimizer: Any) -> tuple[Any, ...]:
    """Return the options that decide which forms of the kernels an optimizer takes."""
    words = [(key, value) for key, value in optimizer.defaults.items() if isinstance(value, (bool, str))]
    return (
        optimizer.skip_nonfinite,
        optimizer.max_grad_norm is not None,
        optimizer.defaults.get("momentum") == 0,
        bool(optimizer.defaults.get("dampening")),
        optimizer.weight_rounding,
        *words,
    )


def after_some_steps(optimizer: Any, fused: bool, where: Where) -> list[Tensor]:
    """Solve the small problem, and return its parameters and their state."""
    generator = torch.Generator("cpu").manual_seed(0)

    def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(where.device, dtype)

    params = [nn.Parameter(values(shape, where.dtype)) for shape in _SHAPES]
    options = {**optimizer.defaults, "lr": 0.05}
    stochastic = optimizer.weight_rounding == "stochastic" and where.dtype == torch.bfloat16
    rounding = {"weight_rounding": "stochastic"} if stochastic else {}
    if "exclude" in options:  # these parameters have no names
        options["exclude"] = None
    tried = _kind(optimizer)(
        params,
        **options,
        **rounding,
        max_grad_norm=optimizer.max_grad_norm,
        skip_nonfinite=optimizer.skip_nonfinite,
        fused=fused,
    )
    if where.shared:  # other ranks add nothing
        tried._plan.all_reduce = lambda sums: None
    for _ in range(_STEPS):
        for p in params:
            grad = values(tuple(p.shape), where.dtype).to(where.gradient)
            if where.gradient != where.dtype:
                p.grad_dtype = where.gradient
            p.grad = grad
        tried.step()
    tried.refuse_incomplete()
    return [p.detach() for p in params] + [t for p in params for t in _tensors(tried.state[p])]


def _kind(optimizer: Any) -> Any:
    """Return the library's own class, for a user's subclass may be made with other arguments."""
    return next(kind for kind in type(optimizer).__mro__ if kind.__module__.startswith("lightning_scale."))


def _tensors(state: dict[str, Tensor]) -> Iterable[Tensor]:
    return (state[key] for key in sorted(state))


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    difference = (ours.double() - theirs.double()).abs()
    if ours.dtype == torch.uint8:
        return bool((difference <= 1).all()) and float((difference > 0).double().mean()) <= _FLIPPED
    scale = float(theirs.double().abs().max()) if theirs.numel() else 0.0
    return bool((difference <= _TOLERANCE[ours.dtype] * scale).all())
