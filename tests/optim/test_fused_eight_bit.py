"""The 8-bit optimizers' Triton kernels take the plain torch step bit for bit, in the interpreter and on a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_scale.optim import AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.kernels.work import Guard
from lightning_scale.optim.layout import Layout, Segment

from .kinds import bits
from .test_eight_bit_layouts import CUT, KERNELS, LAYERS, UNCUT, Rank, numbers, partition

pytest.importorskip("triton")

from lightning_scale.optim.kernels.fused import adamw8bit, coded_chunks, coded_launch, launch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
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
    "LARS8bit-memoryless": lambda p, **o: LARS8bit(p, lr=0.1, momentum=0.0, maximize=True, **o),
}
PLAIN_KINDS = {name: make for name, make in KINDS.items() if "-" not in name}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
every_plain_kind = pytest.mark.parametrize("make", PLAIN_KINDS.values(), ids=PLAIN_KINDS)
every_device = pytest.mark.parametrize("device", DEVICES)
# In 8 bits: a last block that is not full, channels_last, transposed, exactly 4,096; not: 4,095, small, 0-d, one, none.
SHAPES: list[tuple[int, ...]] = [(70, 61), (48, 5, 5, 4), (4096,), (4095,), (6, 5), (), (1,), (0, 3)]


@pytest.fixture(autouse=True)
def exact_square_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's float32 square root on CPUs is MKL's, which is off in the last bit at every tenth number."""

    def sqrt(t: Tensor) -> Tensor:
        return torch.pow(t.double(), 0.5).to(t.dtype) if t.device.type == "cpu" else torch.sqrt(t)

    monkeypatch.setattr(Tensor, "sqrt", sqrt)
    monkeypatch.setattr(Tensor, "sqrt_", lambda t: t.copy_(sqrt(t)))


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
@every_plain_kind
def test_many_chunks(make: Callable[..., Any], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = [(150, 61), (3000,), (4097,)]
    a, b = parameters(device=device, shapes=shapes), parameters(device=device, shapes=shapes)
    ours, theirs = make(a, fused=True), make(b, fused=False)
    monkeypatch.setattr(coded_chunks, "CHUNK", 1024)
    for step in range(2):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        same(ours, theirs, a, b)


@every_device
def test_what_lies_anywhere(device: str) -> None:
    """Parameters, gradients and state that do not begin at a multiple of four elements."""
    results = []
    for shift in (0, 1, 4):
        params = [nn.Parameter(torch.randn(5000, generator=torch.Generator().manual_seed(1)).to(device))]
        room = torch.zeros(5010, device=device)
        room[shift : shift + 5000] = params[0].detach()
        params[0].data = room[shift : shift + 5000]
        optimizer = AdamW8bit(params, fused=True)
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
        results.append((bits(params[0]), bits(optimizer)))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("edges", [*UNCUT[1:], *CUT])
@pytest.mark.parametrize("kernel", KERNELS)
def test_flat_partitions(kernel: str, edges: list[int]) -> None:
    """Segments that begin and end anywhere, small layers beside large ones in the same local tensor."""
    plain, fused = (Rank(kernel, partition(edges, 0, len(edges) + 1), 0, numbers(0), fused) for fused in (False, True))
    for step in range(2):
        results = plain.step(numbers(step + 1)), fused.step(numbers(step + 1))
        for p, q in zip(plain.weights, fused.weights, strict=True):
            assert bits(p) == bits(q)
        assert bits(plain.states) == bits(fused.states)
        if results[0] is not None:
            assert bits([n._asdict() for n in results[0]]) == bits([n._asdict() for n in results[1]])


def test_an_empty_share() -> None:
    rank = Rank("lamb", Layout(LAYERS, (Segment(0, 0, 0, 4270, 0),), (0,)), 0, numbers(0), fused=True)
    (norms,) = rank.step(numbers(1))
    assert norms.weight.tolist() == [0.0] * 4 and norms.ratio.tolist() == [1.0] * 4


def test_a_state_of_another_layout_is_refused() -> None:
    rank = Rank("lamb", partition([1000], 0, 2), 0, numbers(0), fused=True)
    rank.layout = partition([2000], 0, 2)
    with pytest.raises(ValueError, match=r"exp_avg of '0' .*: load a state_dict of the same parameters"):
        rank.step(numbers(1))


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


@every_device
@every_plain_kind
def test_states_go_from_one_way_to_the_other(make: Callable[..., Any], device: str) -> None:
    """And back: whichever took the first steps, the next are the same."""
    results = []
    for ways in ((True, True, True), (False, True, False), (True, False, True)):
        params = parameters(torch.bfloat16, device, SHAPES[:5])
        state = None
        for step, fused in enumerate(ways):
            optimizer = make(params, fused=fused, master_weights=True)
            if state is not None:
                optimizer.load_state_dict(state)
            set_gradients(params, step)
            optimizer.step()
            state = optimizer.state_dict()
        results.append((bits([p.detach() for p in params]), bits(state["state"])))  # type: ignore[index]
    assert results[0] == results[1] == results[2]


@every_device
def test_moved_parameters_and_state_are_noticed(device: str) -> None:
    shapes = SHAPES[2:5]
    a, b = parameters(device=device, shapes=shapes), parameters(device=device, shapes=shapes)
    ours, theirs = LAMB8bit(a, fused=True), LAMB8bit(b, fused=False)
    for step in range(4):
        if step == 1:
            a[0].data = a[0].data.clone()
        if step == 2:
            ours.load_state_dict(ours.state_dict())
        if step == 3:
            ours.state[a[0]]["exp_avg"] = ours.state[a[0]]["exp_avg"].clone()
            theirs.param_groups[0]["lr"] = ours.param_groups[0]["lr"] = 0.02
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        same(ours, theirs, a, b)


@every_device
def test_a_wrong_state_is_refused(device: str) -> None:
    params = parameters(device=device, shapes=[(64, 64)])
    optimizer = AdamW8bit(params, fused=True)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.state[params[0]]["exp_avg"] = optimizer.state[params[0]]["exp_avg"].float()
    with pytest.raises(
        ValueError, match=r"exp_avg of '0\.0' is of dtype torch\.float32, and this optimizer keeps it as"
    ):
        optimizer.step()


@every_device
def test_a_state_in_another_memory_format_is_laid_out_anew(device: str) -> None:
    a, b = parameters(device=device, shapes=[(64, 65)]), parameters(device=device, shapes=[(64, 65)])
    ours, theirs = AdamW8bit(a, fused=True), AdamW8bit(b, fused=False)
    for step in range(2):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        codes = ours.state[a[0]]["exp_avg"]
        ours.state[a[0]]["exp_avg"] = codes.t().contiguous().t()
    same(ours, theirs, a, b)


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


def changed(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """A file of kernels with one constant changed."""
    source = Path(str(module.__file__)).read_text()
    assert old in source
    path = folder / "changed.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("changed", path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


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
    monkeypatch.setattr(adamw8bit, "adamw8bit", changed(adamw8bit, old, new, tmp_path).adamw8bit)
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


def test_one_block_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; the interpreter's time is one per tile, so elsewhere it takes many blocks."""
    monkeypatch.setattr(coded_launch, "INTERPRETED_ROWS", coded_launch.ROWS)
    a, b = parameters(shapes=[(4150,)]), parameters(shapes=[(4150,)])
    ours, theirs = LAMB8bit(a, fused=True), LAMB8bit(b, fused=False)
    for step in range(2):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        same(ours, theirs, a, b)
