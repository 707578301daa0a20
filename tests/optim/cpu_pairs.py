"""What the tests of the CPU kernels share: kinds of steps, and two optimizers that take the same, one by the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_scale.optim.registry import REGISTRY

CLIPPED: dict[str, dict[str, Any]] = {
    "LAMB-uphill": {"max_grad_norm": 0.5},
    "LARS-nesterov": {"max_grad_norm": 1.0},
    "LARS8bit-momentum": {"max_grad_norm": 1.0},
    "LAMB8bit-uphill": {"max_grad_norm": 0.5},
}
"""Forms that are tried with a clip."""


def _maker(kind: Any, fixed: dict[str, Any]) -> Callable[..., Any]:
    return lambda p, **o: kind(p, **{**fixed, **o})


KINDS: dict[str, Callable[..., Any]] = {
    name: _maker(entry.kind, {**options, **CLIPPED.get(name, {})})
    for entry in REGISTRY.values()
    for form, options in entry.every_form().items()
    for name in ["-".join(filter(None, (entry.name, form)))]
}
"""Every form of every optimizer in the registry."""
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


def take_codes(ours: Any, theirs: Any, a: list[nn.Parameter], b: list[nn.Parameter]) -> None:
    """Give the reference the kernels' codes, which agree with its own: where one differs, so do all steps that follow."""
    for p, q in zip(a, b, strict=True):
        for key, codes in theirs.state[q].items():
            if codes.dtype == torch.uint8:
                assert_codes_agree(ours.state[p][key], codes)
                codes.copy_(ours.state[p][key])


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
