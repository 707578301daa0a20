"""What the tests of the CPU kernels share: kinds of steps, and two optimizers that take the same, one by the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit

KINDS: dict[str, Callable[..., Any]] = {
    "LAMB": lambda p, **o: LAMB(p, **o),
    "LAMB-uncorrected": lambda p, **o: LAMB(p, bias_correction=False, trust_ratio_clip=(0.01, 0.5), maximize=True, **o),
    "LAMB-clipped": lambda p, **o: LAMB(p, max_grad_norm=0.5, weight_norm_clip=(0.1, 2.0), **o),
    "LARS": lambda p, **o: LARS(p, lr=0.1, **o),
    "LARS-nesterov": lambda p, **o: LARS(p, lr=0.1, nesterov=True, lr_in_momentum=False, max_grad_norm=1.0, **o),
    "LARS-momentum": lambda p, **o: LARS(p, lr=0.1, trust_norm="momentum", maximize=True, **o),
    "LAMB8bit": lambda p, **o: LAMB8bit(p, max_grad_norm=0.5, maximize=True, **o),
    "AdamW8bit": lambda p, **o: AdamW8bit(p, **o),
    "LARS8bit": lambda p, **o: LARS8bit(p, lr=0.1, **o),
    "LARS8bit-nesterov": lambda p, **o: LARS8bit(p, lr=0.1, nesterov=True, lr_in_momentum=False, **o),
    "LARS8bit-momentum": lambda p, **o: LARS8bit(p, lr=0.1, trust_norm="momentum", max_grad_norm=1.0, **o),
    "SGD8bit": lambda p, **o: SGD8bit(p, lr=0.1, dampening=0.1, **o),
    "LARS-memoryless": lambda p, **o: LARS(p, lr=0.1, momentum=0.0, **o),
    "SGD8bit-memoryless": lambda p, **o: SGD8bit(p, lr=0.1, momentum=0.0, **o),
    "SGD8bit-nesterov": lambda p, **o: SGD8bit(p, lr=0.1, nesterov=True, **o),
}
# A step rounds about 25 times, and norms add up thousands of squares in another order.
TOLERANCE = 64 * 2.0**-24
# Scalars, single elements, nothing, less than a row, rows with and without a rest, several calls, a matrix not contiguous.
SHAPES: list[tuple[int, ...]] = [
    (5, 7), (), (1,), (0, 3), (700,), (91, 101), (64, 256), (64, 2304), (97, 311), (4096,), (5001,), (40, 120),
]  # fmt: skip


def parameters(dtype: torch.dtype = torch.float32, shapes: list[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    values = [v.t().contiguous().t() if v.shape == (40, 120) else v for v in values]
    return [nn.Parameter(v) for v in values]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def assert_codes_agree(mine: Tensor, reference: Tensor) -> None:
    """Off by one at most, and seldom: where a moment lies within rounding of a threshold."""
    off = (mine.int() - reference.int()).abs()
    assert int(off.max()) <= 1
    assert int((off > 0).sum()) <= 2 + off.numel() // 1000


def compare(ours: Any, theirs: Any, a: list[nn.Parameter], b: list[nn.Parameter], tolerance: float = TOLERANCE) -> None:
    for p, q in zip(a, b, strict=True):
        for key, reference in {"weight": q.detach(), **theirs.state[q]}.items():
            mine = p.detach() if key == "weight" else ours.state[p][key]
            assert (mine.dtype, mine.shape) == (reference.dtype, reference.shape)
            if reference.dtype == torch.uint8:
                assert_codes_agree(mine, reference)
            elif key == "step":
                assert torch.equal(mine, reference), key
            elif reference.numel():
                limit = (TOLERANCE if reference.dtype == torch.float32 and key != "master" else tolerance) * float(
                    reference.abs().max()
                )
                torch.testing.assert_close(mine, reference, rtol=0, atol=limit)


def pair(make: Callable[..., Any], dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    a, b = parameters(dtype), parameters(dtype)
    both = [
        make([{"params": p[:4]}, {"params": p[4:], "weight_decay": 0.3}], weight_decay=0.05, fused=fused, **options)
        for p, fused in ((a, None), (b, False))
    ]
    return *both, a, b
