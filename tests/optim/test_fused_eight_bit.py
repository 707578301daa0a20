"""The 8-bit optimizers' Triton kernels take the plain torch step bit for bit, in the interpreter and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_scale.optim import AdamW8bit, LAMB8bit
from lightning_scale.optim.backends.bucket import Guard

from .fused_eight_bit_pairs import (
    PLAIN_KINDS,
    SHAPES,
    every_kind,
    every_plain_kind,
    guarded,
    parameters,
    same,
    set_gradients,
)
from .fused_kernels import every_device, module_of
from .kinds import bits

pytest.importorskip("triton")

from lightning_scale.optim.backends.triton import adamw, launch

pytestmark = pytest.mark.usefixtures("exact_square_roots")


@every_device
@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {}), (torch.bfloat16, {"master_weights": True})],
    ids=["float32", "bfloat16-master"],
)
@every_kind
def test_the_plain_step_bit_for_bit(
    make: Callable[..., Any], dtype: torch.dtype, options: dict[str, Any], device: str
) -> None:
    a, b = parameters(dtype, device), parameters(dtype, device)
    ours, theirs = make(a, fused=True, **options), make(b, fused=False, **options)
    for step in range(3):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        same(ours, theirs, a, b)


@every_device
@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.bfloat16, {}), (torch.float16, {}), (torch.float16, {"master_weights": True})],
    ids=["bfloat16", "float16", "float16-master"],
)
@every_plain_kind
def test_other_precisions(make: Callable[..., Any], dtype: torch.dtype, options: dict[str, Any], device: str) -> None:
    a, b = parameters(dtype, device, SHAPES[1:5]), parameters(dtype, device, SHAPES[1:5])
    ours, theirs = make(a, fused=True, **options), make(b, fused=False, **options)
    for step in range(2):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        same(ours, theirs, a, b)


@every_device
@every_plain_kind
def test_clipped_and_found_finite_on_the_device(
    make: Callable[..., Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate as a tensor, groups of their own, and parameters of two types."""
    a, b = (
        [*parameters(torch.float32, device, SHAPES[2:5]), *parameters(torch.bfloat16, device, SHAPES[:1])] for _ in "ab"
    )
    ours, theirs = (
        make([{"params": p[:2]}, {"params": p[2:], "weight_decay": 0.3, "lr": torch.tensor(0.02)}], fused=fused)
        for p, fused in ((a, True), (b, False))
    )
    finite = torch.ones((), dtype=torch.bool, device=device)
    guarded(monkeypatch, Guard(finite, torch.tensor(0.37, dtype=torch.float64, device=device)), ours, theirs)
    for step in range(2):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        same(ours, theirs, a, b)


@every_device
@every_kind
def test_a_step_that_the_device_skips_leaves_every_bit(
    make: Callable[..., Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = parameters(torch.bfloat16, device, SHAPES[:5])
    optimizer = make(params, fused=True, master_weights=True)
    set_gradients(params, 0)
    optimizer.step()
    before = bits([p.detach() for p in params]), bits(optimizer)
    set_gradients(params, 1)
    params[0].grad[0, 0] = float("nan")  # type: ignore[index]
    guarded(monkeypatch, Guard(torch.zeros((), dtype=torch.bool, device=device)), optimizer)
    optimizer.step()
    assert (bits([p.detach() for p in params]), bits(optimizer)) == before


@every_device
def test_a_first_step_that_is_skipped_leaves_every_bit(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics too are those of the plain step: of a gradient of zero."""
    a, b = parameters(device=device, shapes=SHAPES[2:5]), parameters(device=device, shapes=SHAPES[2:5])
    ours, theirs = LAMB8bit(a, fused=True), LAMB8bit(b, fused=False)
    before = bits([p.detach() for p in a])
    with monkeypatch.context() as patch:
        guarded(patch, Guard(torch.zeros((), dtype=torch.bool, device=device)), ours)
        set_gradients(a, 0), set_gradients(b, 0)
        ours.step(), theirs.step()
    assert bits([p.detach() for p in a]) == before
    for step in range(2):
        same(ours, theirs, a, b)
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()


SIZES = {"AdamW8bit": (1, 2), "SGD8bit": (1, 2), "LAMB8bit": (3, 5), "LARS8bit": (3, 5)}


@every_device
@pytest.mark.parametrize("name", SIZES)
def test_launches_do_not_grow_with_the_number_of_tensors(name: str, device: str) -> None:
    """One for each pass and one for the norms; small layers beside large ones have passes of their own."""
    for shapes, expected in (
        ([(64, 64)] * 2, SIZES[name][0]),
        ([(64, 64)] * 20, SIZES[name][0]),
        ([(3, 5)] * 20, SIZES[name][0]),
        ([(3, 5), (64, 64)] * 10, SIZES[name][1]),
    ):
        params = parameters(torch.float32, device, shapes)
        optimizer = PLAIN_KINDS[name](params, fused=True)
        set_gradients(params, 0)
        before = launch.launches
        optimizer.step()
        assert launch.launches - before == 2 + expected  # with the look at the gradients and what it adds up to


@every_device
def test_the_same_bits_on_repeat(device: str) -> None:
    results = []
    for _ in range(2):
        params = parameters(device=device, shapes=SHAPES[:3])
        optimizer = LAMB8bit(params, fused=True, max_grad_norm=1.0)
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
        results.append((bits([p.detach() for p in params]), bits(optimizer)))
    assert results[0] == results[1]


def test_left_to_itself_a_cpu_takes_the_plain_way() -> None:
    params = parameters(shapes=[(64, 64)])
    set_gradients(params, 0)
    before = launch.launches
    AdamW8bit(params).step()
    assert launch.launches == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("w * kept - ", "w - "),
        (") * rate", ") * rate * 0.9999999"),
        ("read_moment(v_at, v_scales, i, rows, inside, inside_rows, values", "read_moment(v_at, v_scales, i, rows, inside,"
         " inside_rows, signed_values"),
        ("m_bits, signed_table, True, PLAIN", "m_bits, signed_table, False, PLAIN"),
        ("v_bits, table, False, PLAIN", "m_bits, table, False, PLAIN"),
        ("corrections + 4 * tensor", "corrections + 2 * tensor"),
        ("v_at, v_scales, i, rows, inside, inside_rows, v,", "v_at, m_scales, i, rows, inside, inside_rows, v,"),
    ],
)  # fmt: skip
def test_a_changed_constant_is_noticed(old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(str(adamw.__file__)).read_text()
    assert old in source
    monkeypatch.setattr(adamw, "adamw8bit", module_of(source.replace(old, new), tmp_path).adamw8bit)
    shapes: list[tuple[int, ...]] = [(4100,), (64, 65)]
    a, b = parameters(shapes=shapes), parameters(shapes=shapes)
    ours, theirs = (AdamW8bit(p, lr=0.5, fused=fused) for p, fused in ((a, True), (b, False)))

    def steps() -> None:
        for step in range(2):
            set_gradients(a, step), set_gradients(b, step)
            ours.step(), theirs.step()
        same(ours, theirs, a, b)

    with pytest.raises(AssertionError):
        steps()
