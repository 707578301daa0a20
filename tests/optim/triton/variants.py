"""The forms of every kernel that real training launches, as steps on small CPU tensors that launch them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim.backends.bucket import Backend
from lightning_scale.optim.registry import REGISTRY

OPTIMIZERS = tuple(name for name, entry in REGISTRY.items() if Backend.TRITON in entry.kind._backends)
PRECISIONS = {
    "float32": (torch.float32, False),
    "bf16-master": (torch.bfloat16, True),
    "bf16": (torch.bfloat16, False),
    "bf16-stochastic": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
}
"""The dtype of parameters and gradients, and whether there are float32 masters; "stochastic" is how weights are rounded."""

OWN_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    name: {form: dict(own.options) for form, own in REGISTRY[name].forms.items()} for name in OPTIMIZERS
}
"""Options that are compile-time constants of the kernels, beside those of a `Variant`."""


@dataclass(frozen=True)
class Variant:
    """One form of an optimizer's step.

    Args:
        optimizer: Its class's name.
        precision: Of parameters and gradients: one of `PRECISIONS`.
        test: The test for NaN and Inf.
        clip: ``max_grad_norm``.
        sharded: Other ranks have a share of every layer.
        own: One of `OWN_OPTIONS`, or nothing.
        aligned: Whether tensors begin where vectors can be read.
    """

    optimizer: str
    precision: str = "float32"
    test: bool = True
    clip: bool = False
    sharded: bool = False
    own: str = ""
    aligned: bool = True
    shapes: tuple[tuple[int, ...], ...] = field(default=((64, 128), (33,)), compare=False)

    @property
    def name(self) -> str:
        said = {
            self.precision: self.precision != "float32",
            "no test": not self.test,
            "clip": self.clip,
            "sharded": self.sharded,
            "unaligned": not self.aligned,
            self.own: bool(self.own),
        }
        return ", ".join([self.optimizer, *(word for word, holds in said.items() if holds)])

    def options(self) -> dict[str, Any]:
        return {
            "lr": 0.1,
            "weight_decay": 0.01,
            "master_weights": PRECISIONS[self.precision][1],
            "max_grad_norm": 1.0 if self.clip else None,
            "skip_nonfinite": self.test,
            "fused": True,
            "weight_rounding": "stochastic" if "stochastic" in self.precision else "nearest",
            **(OWN_OPTIONS[self.optimizer][self.own] if self.own else {}),
        }


def usual() -> Iterator[Variant]:
    """float32 and bfloat16 with float32 masters; the test for NaN and Inf, also with a clip, and neither; whole and sharded."""
    guards = [(True, False), (True, True), (False, False)]
    for optimizer, precision, guard, sharded in product(OPTIMIZERS, ("float32", "bf16-master"), guards, (False, True)):
        yield Variant(optimizer, precision, *guard, sharded)


def stochastic() -> Iterator[Variant]:
    """bfloat16 weights that are rounded stochastically; whole and sharded."""
    for optimizer, sharded in product(OPTIMIZERS, (False, True)):
        yield Variant(optimizer, "bf16-stochastic", sharded=sharded)


def every() -> Iterator[Variant]:
    """All precisions with all choices, the options of each optimizer, and where nothing is aligned."""
    for optimizer in OPTIMIZERS:
        for precision, test, clip, sharded in product(PRECISIONS, *[(False, True)] * 3):
            for own in ("", *(OWN_OPTIONS[optimizer] if precision in ("float32", "bf16-master") else ())):
                yield Variant(optimizer, precision, test, clip, sharded, own)
        yield Variant(optimizer, aligned=False)


def parameters(variant: Variant) -> list[nn.Parameter]:
    """With gradients."""
    dtype, _ = PRECISIONS[variant.precision]
    generator = torch.Generator().manual_seed(0)

    def numbers(shape: tuple[int, ...]) -> torch.Tensor:
        if variant.aligned:
            return torch.randn(shape, generator=generator).to(dtype)
        count = torch.Size(shape).numel()
        return torch.randn(count + 1, generator=generator).to(dtype)[1:].view(shape)

    found = [nn.Parameter(numbers(shape)) for shape in variant.shapes]
    for p in found:
        p.grad = numbers(tuple(p.shape))
    return found


def take_step(variant: Variant, steps: int = 1) -> Any:
    """The optimizer, which has taken so many steps as on a GPU: the host does not look whether gradients are finite."""
    from lightning_scale import optim
    from lightning_scale.optim.backends.bucket import Guard

    with pytest.MonkeyPatch.context() as patch:
        optimizer = getattr(optim, variant.optimizer)(parameters(variant), **variant.options())
        if variant.sharded:
            optimizer._plan.all_reduce = lambda sums: None
        decide = type(optimizer)._decide

        def decided(self: Any, gathered: Any) -> Guard:
            decide(self, gathered)
            finite = torch.ones((), dtype=torch.bool) if variant.test else None
            return Guard(finite, torch.ones(()) if variant.clip else None)

        patch.setattr(type(optimizer), "_decide", decided)
        for _ in range(steps):
            optimizer.step()
    return optimizer
