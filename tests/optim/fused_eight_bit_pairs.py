"""What the tests of the 8-bit Triton kernels share: kinds of steps, and what makes two optimizers' steps the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.backends.bucket import Guard

from .kinds import bits

KINDS: dict[str, Callable[..., Any]] = {
    "AdamW8bit": lambda p, **o: AdamW8bit(p, **o),
    "AdamW8bit-options": lambda p, **o: AdamW8bit(p, weight_decay=0.3, betas=(0.5, 0.9), eps=1e-3, maximize=True, **o),
    "SGD8bit": lambda p, **o: SGD8bit(p, **o),
    "SGD8bit-options": lambda p, **o: SGD8bit(p, weight_decay=0.1, dampening=0.3, maximize=True, **o),
    "SGD8bit-nesterov": lambda p, **o: SGD8bit(p, nesterov=True, lr=torch.tensor(0.1), **o),
    "SGD8bit-memoryless": lambda p, **o: SGD8bit(p, momentum=0.0, weight_decay=0.1, **o),
    "LAMB8bit": lambda p, **o: LAMB8bit(p, **o),
    "LAMB8bit-options": lambda p, **o: LAMB8bit(
        p, bias_correction=False, exclude_1d=False, eps=0.0, maximize=True, **o
    ),
    "LARS8bit": lambda p, **o: LARS8bit(p, lr=0.1, weight_decay=0.1, **o),
    "LARS8bit-nesterov": lambda p, **o: LARS8bit(p, lr=0.1, nesterov=True, lr_in_momentum=False, **o),
    "LARS8bit-momentum": lambda p, **o: LARS8bit(p, lr=0.1, trust_norm="momentum", weight_decay=0.1, **o),
    "LARS8bit-decayed": lambda p, **o: LARS8bit(
        p, lr=0.1, trust_norm="decayed_gradient", weight_decay=0.1, trust_clip="larc", trust_coefficient=0.1, **o
    ),
    "LARS8bit-dampened": lambda p, **o: LARS8bit(p, lr=0.1, dampening=0.3, lr_in_momentum=False, **o),
    "LARS8bit-memoryless": lambda p, **o: LARS8bit(p, lr=0.1, momentum=0.0, maximize=True, **o),
}
PLAIN_KINDS = {name: make for name, make in KINDS.items() if "-" not in name}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
every_plain_kind = pytest.mark.parametrize("make", PLAIN_KINDS.values(), ids=PLAIN_KINDS)
# In 8 bits: a last block that is not full, channels_last, transposed, exactly 4,096; not: 4,095, small, 0-d, one, none.
SHAPES: list[tuple[int, ...]] = [(70, 61), (48, 5, 5, 4), (4096,), (4095,), (6, 5), (), (1,), (0, 3)]


def parameters(
    dtype: torch.dtype = torch.float32, device: str = "cpu", shapes: list[tuple[int, ...]] = SHAPES
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes]
    values = [v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for v in values]
    values = [v.t().contiguous().t() if v.shape == (70, 61) else v for v in values]
    return [nn.Parameter(v) for v in values]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    """New tensors at every step, in row-major order whatever the parameter's, over many orders of magnitude."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        spread = torch.randn(p.shape, generator=generator).exp()
        p.grad = (torch.randn(p.shape, generator=generator) * spread).to(p.dtype).to(p.device)


def same(ours: Any, theirs: Any, a: list[nn.Parameter], b: list[nn.Parameter]) -> None:
    for number, (p, q) in enumerate(zip(a, b, strict=True)):
        assert ours.state[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            assert bits(ours.state[p][key]) == bits(value), (number, key)
        assert bits(p) == bits(q), number
    if hasattr(ours, "layer_stats"):
        assert bits(ours.layer_stats()) == bits(theirs.layer_stats())


def guarded(monkeypatch: pytest.MonkeyPatch, guard: Guard, *optimizers: Any) -> None:
    """Let these optimizers' steps be decided by this guard."""
    for kind in {type(optimizer) for optimizer in optimizers}:
        monkeypatch.setattr(kind, "_decide", lambda self, gathered: guard)
