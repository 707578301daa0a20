"""The Triton kernels take the plain torch step, in the interpreter and on a GPU; and they are what ran."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.backends import choice
from lightning_scale.optim.backends.bucket import Guard
from tests.optim.fused_kernels import every_device, module_of
from tests.optim.kinds import bits

pytest.importorskip("triton")

from lightning_scale.optim.backends.triton import lamb as fused_lamb
from lightning_scale.optim.backends.triton import launch

KINDS: dict[str, Callable[..., Any]] = {
    "LAMB": lambda p, **o: LAMB(p, **o),
    "LAMB-uncorrected": lambda p, **o: LAMB(p, bias_correction=False, trust_ratio_clip=(0.01, 0.5), **o),
    "LAMB-clipped": lambda p, **o: LAMB(p, max_grad_norm=0.5, weight_norm_clip=(0.1, 2.0), **o),
    "LAMB-uphill": lambda p, **o: LAMB(p, maximize=True, eps=0.0, **o),
    "LARS": lambda p, **o: LARS(p, lr=0.1, **o),
    "LARS-nesterov": lambda p, **o: LARS(p, lr=0.1, nesterov=True, lr_in_momentum=False, **o),
    "LARS-memoryless": lambda p, **o: LARS(p, lr=0.1, momentum=0.0, max_grad_norm=0.5, **o),
    "LARS-decayed": lambda p, **o: LARS(
        p, lr=0.1, trust_norm="decayed_gradient", trust_clip="larc", trust_coefficient=0.1, max_grad_norm=0.5, **o
    ),
    "LARS-dampened": lambda p, **o: LARS(p, lr=0.1, dampening=0.3, trust_clip="larc", trust_coefficient=0.1, **o),
    "LARS-momentum": lambda p, **o: LARS(p, lr=0.1, trust_norm="momentum", maximize=True, **o),
}
# A step rounds about 25 times, and norms add up thousands of squares in another order.
TOLERANCE = 64 * 2.0**-24
PRECISIONS = {
    "float32": (torch.float32, {}, TOLERANCE),
    "bfloat16": (torch.bfloat16, {}, 2.0**-7),  # one rounding of a weight may fall to the other side
    "bfloat16-master": (torch.bfloat16, {"master_weights": True}, 2.0**-7),
    "float16-master": (torch.float16, {"master_weights": True}, 2.0**-10),
}
# Scalars, single elements, nothing, other memory formats, more than a block, and more than a chunk with a rest.
SHAPES: list[tuple[int, ...]] = [(5, 7), (4, 3, 2, 2), (7,), (), (1,), (0, 3), (91, 101), (200, 211)]


def parameters(dtype: torch.dtype, device: str = "cpu", shapes: list[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes]
    values = [v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for v in values]
    values = [v.t().contiguous().t() if v.shape == (91, 101) else v for v in values]
    return [nn.Parameter(v) for v in values]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    """New tensors at every step, in row-major order whatever the parameter's."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype).to(p.device)


def compare(ours: Any, theirs: Any, a: list[nn.Parameter], b: list[nn.Parameter], tolerance: float) -> None:
    for p, q in zip(a, b, strict=True):
        pairs = [(p.detach(), q.detach()), *((ours.state[p][key], theirs.state[q][key]) for key in theirs.state[q])]
        for mine, reference in pairs:
            assert mine.dtype == reference.dtype
            scale = float(reference.abs().max()) if reference.numel() else 0.0
            kept = mine.dtype == torch.float32 and reference.dim() > 0
            torch.testing.assert_close(
                mine, reference, rtol=0, atol=(TOLERANCE * 8 if kept else tolerance) * scale, equal_nan=True
            )


@every_device
@pytest.mark.parametrize(("dtype", "options", "tolerance"), PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_plain_step_element_by_element(
    make: Callable[..., Any], dtype: torch.dtype, options: dict[str, Any], tolerance: float, device: str
) -> None:
    a, b = parameters(dtype, device), parameters(dtype, device)
    ours = make([{"params": a[:3]}, {"params": a[3:], "weight_decay": 0.3}], weight_decay=0.05, fused=True, **options)
    theirs = make(
        [{"params": b[:3]}, {"params": b[3:], "weight_decay": 0.3}], weight_decay=0.05, fused=False, **options
    )
    for step in range(3):
        set_gradients(a, step), set_gradients(b, step)
        before = launch.launches
        ours.step()
        attempts = 4  # at the gradients of each group, and what they add up to
        kernels = 2 if isinstance(ours, LAMB) else 1  # LAMB counts steps
        assert launch.launches - before == attempts + kernels * 2
        theirs.step()
        if step == 0 or dtype == torch.float32:  # later, low precision has rounded to different sides
            compare(ours, theirs, a, b, tolerance)
    for mine, reference in zip(ours.layer_stats().values(), theirs.layer_stats().values(), strict=True):
        for x, y in zip(mine, reference, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6)


@every_device
def test_launches_do_not_grow_with_the_number_of_tensors(device: str) -> None:
    counts = []
    for number in (2, 60):
        params = parameters(torch.float32, device, [(3, 5)] * number)
        optimizer = LAMB(params, fused=True, max_grad_norm=1.0)
        set_gradients(params, 0)
        before = launch.launches
        optimizer.step()
        counts.append(launch.launches - before)
    assert counts[0] == counts[1] == 4


@every_device
def test_moved_parameters_and_state_are_noticed(device: str) -> None:
    """Between steps: a parameter's memory is replaced, a group is added, a state is loaded."""
    a, b = parameters(torch.float32, device), parameters(torch.float32, device)
    ours, theirs = LAMB(a, fused=True), LAMB(b, fused=False)
    for step in range(4):
        if step == 1:
            a[0].data = a[0].data.clone()
        if step == 2:
            more = [parameters(torch.float32, device, [(6, 6)])[0] for _ in range(2)]
            a, b = [*a, more[0]], [*b, more[1]]
            ours.add_param_group({"params": [more[0]], "lr": 0.5})
            theirs.add_param_group({"params": [more[1]], "lr": 0.5})
        if step == 3:
            ours.load_state_dict(ours.state_dict())
            theirs.param_groups[0]["lr"] = ours.param_groups[0]["lr"] = 0.02
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        compare(ours, theirs, a, b, TOLERANCE)


@every_device
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_step_that_the_device_skips_leaves_every_bit(
    make: Callable[..., Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = parameters(torch.bfloat16, device)
    optimizer = make(params, fused=True, master_weights=True)
    set_gradients(params, 0)
    optimizer.step()
    before = bits([p.detach() for p in params]), bits(optimizer), bits(optimizer.layer_stats())
    set_gradients(params, 1)
    params[0].grad[0, 0] = float("nan")  # type: ignore[index]
    refused = Guard(torch.zeros((), dtype=torch.bool, device=device), torch.ones((), device=device))
    monkeypatch.setattr(type(optimizer), "_decide", lambda self, gathered: refused)
    optimizer.step()
    assert (bits([p.detach() for p in params]), bits(optimizer), bits(optimizer.layer_stats())) == before


@every_device
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_two_launches_where_other_ranks_have_a_share(make: Callable[..., Any], device: str) -> None:
    """Here the other ranks' shares are nothing: the same step as in one launch, to the rounding of the norms."""
    asked: list[Tensor] = []
    a, b = parameters(torch.float32, device), parameters(torch.float32, device)
    ours, theirs = (make(p, weight_decay=0.05, fused=True) for p in (a, b))
    ours._plan.all_reduce = asked.append
    for step in range(3):
        set_gradients(a, step), set_gradients(b, step)
        theirs.step()
        before = launch.launches
        ours.step()
        launched = launch.launches - before
        compare(ours, theirs, a, b, TOLERANCE)
    assert launched == 5 + isinstance(ours, LAMB)
    assert len(asked) == 2 * 3  # of the gradients, and of the norms


@every_device
def test_gradients_that_lie_at_odd_addresses(device: str) -> None:
    """As views into the buckets of DDP do: read without vectors, the same numbers."""
    a, b = parameters(torch.float32, device), parameters(torch.float32, device)
    ours, theirs = LAMB(a, fused=True), LAMB(b, fused=True)
    set_gradients(a, 0), set_gradients(b, 0)
    for p in b:
        bucket = torch.zeros(p.numel() + 3, device=device)
        p.grad = bucket[3:].view(p.shape).copy_(p.grad)
    ours.step(), theirs.step()
    assert bits([p.detach() for p in a]) == bits([p.detach() for p in b])


@every_device
def test_non_finite_gradients_are_seen(device: str) -> None:
    for place, value in ((0, float("nan")), (7, float("inf")), (7, float("-inf"))):
        params = parameters(torch.float32, device)
        optimizer = LAMB(params, fused=True)
        set_gradients(params, 0)
        params[place].grad.view(-1)[-1] = value  # type: ignore[union-attr]
        before = bits([p.detach() for p in params])
        optimizer.step()
        assert bits([p.detach() for p in params]) == before
        assert int(optimizer.skipped_steps) == 1


@every_device
def test_the_same_bits_on_repeat(device: str) -> None:
    results = []
    for _ in range(2):
        params = parameters(torch.float32, device)
        optimizer = LAMB(params, fused=True, max_grad_norm=1.0)
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
        results.append((bits([p.detach() for p in params]), bits(optimizer)))
    assert results[0] == results[1]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [LAMB, LARS, LAMB8bit, LARS8bit, AdamW8bit, SGD8bit])
def test_large_tensors(kind: Any) -> None:
    """More chunks than a GPU works on at a time, layers that fit into its cache and one that does not."""
    shapes = [(30_001, 1024), (1024, 1024), (4096, 1023), (1024,)]
    a, b = (parameters(torch.float32, "cuda", shapes) for _ in range(2))
    ours, theirs = kind(a, lr=0.1, fused=True), kind(b, lr=0.1, fused=False)
    for step in range(3):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=TOLERANCE * 8 * float(q.abs().max()))
        for key, value in theirs.state[q].items():
            if value.dtype == torch.uint8:
                assert float((ours.state[p][key] != value).double().mean()) < 1e-4
            else:
                torch.testing.assert_close(
                    ours.state[p][key], value, rtol=0, atol=TOLERANCE * 8 * float(value.abs().max())
                )


def changed(old: str, new: str, folder: Path) -> ModuleType:
    """The kernels' file with one constant changed."""
    whole = Path(fused_lamb.__file__).read_text()
    source = "\n".join(line for line in whole.split("\n") if "__future__" not in line)
    assert source.count(old) == 1
    return module_of("from __future__ import annotations\n" + source.replace(old, new), folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("beta1 * m + rest1 * g", "beta1 * m + rest1 * g * 1.001"),
        ("rest2 * g * g", "rest1 * g * g"),
        ("+ decay * w", "+ 0.9 * decay * w"),
        ("return w * w, u * u", "return w * w, u * u * 1.01"),
        ("w - rate * _update", "w - 0.999 * rate * _update"),
    ],
)
def test_a_changed_constant_is_noticed(old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_lamb, "lamb", changed(old, new, tmp_path).lamb)
    a, b = parameters(torch.float32), parameters(torch.float32)
    ours, theirs = (LAMB(p, lr=0.5, weight_decay=0.05, fused=fused) for p, fused in ((a, True), (b, False)))
    set_gradients(a, 0), set_gradients(b, 0)
    ours.step(), theirs.step()
    with pytest.raises(AssertionError):
        compare(ours, theirs, a, b, TOLERANCE)


def strided() -> Tensor:
    return torch.randn(4, 10)[:, ::2]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (lambda: torch.randn(3, 4, dtype=torch.float64), "float64: use float32, bfloat16 or float16"),
        (strided, "gaps between its elements"),
    ],
)
def test_what_the_kernels_do_not_take(value: Callable[[], Tensor], sentence: str) -> None:
    p = nn.Parameter(value())
    p.grad = torch.randn(p.shape, dtype=p.dtype)
    with pytest.raises(ValueError, match=sentence):
        LAMB([p], fused=True).step()
    LAMB([p]).step()


def test_without_a_device_or_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    p = nn.Parameter(torch.randn(3, 4))
    p.grad = torch.randn(3, 4)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="one is on cpu: move the model to a CUDA device, or leave fused out"):
        LAMB([p], fused=True).step()
    monkeypatch.setattr(choice, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="triton is not installed: install it"):
        LARS([p], lr=0.1, fused=True)


def test_left_to_itself_a_cpu_takes_the_plain_way() -> None:
    p = nn.Parameter(torch.randn(3, 4))
    p.grad = torch.randn(3, 4)
    before = launch.launches
    LAMB([p]).step()
    assert launch.launches == before
