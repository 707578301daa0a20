"""The nearest code and quotients as the Triton kernels find them, in the interpreter: the same as the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_scale.optim.quantization import Code, nearest_by_search

from .test_nearest import both_codes, interesting

pytest.importorskip("triton")

import triton
import triton.language as tl

from lightning_scale.optim.backends.choice import interpreted
from lightning_scale.optim.backends.triton import quantization as module
from lightning_scale.optim.backends.triton.quantization import nearest_code, quotient, search_table

DEVICE = "cpu" if interpreted() else "cuda"


@triton.jit
def _codes(x, table, out, length, SIGN: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    numbers = tl.load(x + i, mask=i < length, other=0.0)
    tl.store(out + i, nearest_code(numbers, table, SIGN).to(tl.uint8), mask=i < length)


@triton.jit
def _quotients(x, divisor, reciprocal, out, length, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    a = tl.load(x + i, mask=i < length, other=1.0)
    b, y = tl.load(divisor + i, mask=i < length, other=1.0), tl.load(reciprocal + i, mask=i < length, other=1.0)
    tl.store(out + i, quotient(a, b, y), mask=i < length)


def run(kernel: Any, out: Tensor, *args: Any, **options: Any) -> Tensor:
    size = 1 << 17 if interpreted() else 1 << 10
    kernel[(triton.cdiv(out.numel(), size),)](*args, out, out.numel(), SIZE=size, enable_fp_fusion=False, **options)
    return out.cpu()


@pytest.mark.parametrize("lines", [True, False])
@both_codes
def test_the_nearest_code(code: Code, lines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every border with its neighbours, around it, and every 4,999th float32 in [-1, 1], those below 2^-126 too.

    For all 3,196,059,651 numbers it was tried once: each operation here rounds as a float32 one, and none was wrong.
    """
    if not interpreted() and not lines:
        pytest.skip("a constant of compiled kernels")
    monkeypatch.setattr(module, "LINES", tl.constexpr(lines))
    end = 0x3F800000
    around = code.thresholds().abs().view(torch.int32)[:, None] + torch.arange(-300, 300, dtype=torch.int32)
    sweep = torch.cat([torch.arange(0, end + 1, 4999, dtype=torch.int32), around.flatten().clamp(0, end)])
    x = torch.cat([interesting(code), sweep.view(torch.float32)])
    if code.signed:
        x = torch.cat([x, -x])
    table = search_table(code.signed, torch.device(DEVICE))
    out = torch.zeros(x.numel(), dtype=torch.uint8, device=DEVICE)
    codes = run(_codes, out, x.to(DEVICE), table, SIGN=code.signed)
    assert torch.equal(codes, nearest_by_search(x, code))


def test_quotients_are_those_of_a_division() -> None:
    """For divisors over all of [1, 2): the numerators whose quotients lie nearest to the middle of two float32 numbers."""
    pairs = []
    for b in range((1 << 23) + 1, 1 << 24, 30011):
        odd = b // (b & -b)
        for k in (24, 25):
            inverse = pow(2, -k, odd)
            for j in (-3, -2, -1, 1, 2, 3):
                first = j * inverse % odd
                first += -(-((1 << 23) - first) // odd) * odd if first < 1 << 23 else 0
                if first < 1 << 24:
                    pairs.append((first, b))
    numbers = np.array(pairs)
    assert len(numbers) > 2000
    x, divisor = (torch.from_numpy(numbers[:, i]).float() for i in range(2))
    for scale in (1.0, 2.0**-40, 2.0**60):
        a, b = x * scale, divisor * 2.0**-24
        out = run(_quotients, torch.zeros_like(a, device=DEVICE), a.to(DEVICE), b.to(DEVICE), (1 / b).to(DEVICE))
        assert torch.equal(out, a / b)
