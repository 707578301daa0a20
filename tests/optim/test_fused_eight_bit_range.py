"""The 8-bit Triton kernels on the largest, the smallest and no numbers: the plain step, bit for bit."""

from __future__ import annotations

import pytest
import torch

from lightning_scale.optim import AdamW8bit

from .fused_eight_bit_pairs import (
    PLAIN_KINDS,
    parameters,
    same,
    set_gradients,
)
from .fused_kernels import every_device
from .kinds import bits

pytest.importorskip("triton")


pytestmark = pytest.mark.usefixtures("exact_square_roots")


@every_device
@pytest.mark.parametrize("name", PLAIN_KINDS)
@pytest.mark.parametrize("scale", [1e19, 3e38, 1e-20, 1e-45, 0.0])
def test_gradients_of_any_size(scale: float, name: str, device: str) -> None:
    a, b = parameters(device=device, shapes=[(4100,)]), parameters(device=device, shapes=[(4100,)])
    ours, theirs = (PLAIN_KINDS[name](p, fused=f) for p, f in ((a, True), (b, False)))
    for factor in (1.0, scale):
        for p, q in zip(a, b, strict=True):
            set_gradients([p], 0)
            p.grad = p.grad.clamp(-1, 1).mul(factor)  # type: ignore[union-attr]
            q.grad = p.grad.clone()
        ours.step(), theirs.step()
        for key, value in theirs.state[b[0]].items():
            assert bits(ours.state[a[0]][key]) == bits(value), key
        torch.testing.assert_close(a[0], b[0], rtol=0, atol=0, equal_nan=True)


@every_device
@pytest.mark.parametrize("largest", [1e-3, 1.7, 5.0, 1e4])
def test_the_smallest_numbers_beside_large_ones(largest: float, device: str) -> None:
    """Second moments of a few times 2^-149, which divided by the block's largest may just become 0."""
    a, b = parameters(device=device, shapes=[(4096,)]), parameters(device=device, shapes=[(4096,)])
    ours, theirs = (AdamW8bit(p, fused=f, betas=(0.9, 0.0)) for p, f in ((a, True), (b, False)))
    for p in (a[0], b[0]):
        p.grad = torch.logspace(-23.5, -19.5, 4096).to(device)
        p.grad[::256] = largest**0.5
    ours.step(), theirs.step()
    same(ours, theirs, a, b)
    assert 0 < int((ours.state[a[0]]["exp_avg_sq"] == 0).sum()) < 4080


@every_device
@pytest.mark.parametrize("name", PLAIN_KINDS)
def test_a_nan_that_is_let_through_spoils_its_block(name: str, device: str) -> None:
    a, b = parameters(device=device, shapes=[(4100,)]), parameters(device=device, shapes=[(4100,)])
    ours, theirs = (PLAIN_KINDS[name](p, fused=f, skip_nonfinite=False) for p, f in ((a, True), (b, False)))
    set_gradients(a, 0), set_gradients(b, 0)
    a[0].grad[300] = b[0].grad[300] = torch.nan  # type: ignore[index]
    ours.step(), theirs.step()
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=0, equal_nan=True)
    for key, value in theirs.state[b[0]].items():
        mine = ours.state[a[0]][key]
        torch.testing.assert_close(mine, value, rtol=0, atol=0, equal_nan=True)
        assert not key.endswith("absmax") or mine.isnan().nonzero().flatten().tolist() == [1]
