"""Where kernels are launched, and what the host's numbers need that a CUDA graph reads: on stand-ins for GPUs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from lightning_scale import optim
from lightning_scale.optim import LAMB, LARS, IncompleteStep, layerwise, self_check, step_plan
from lightning_scale.optim.backends import device as constants
from lightning_scale.optim.backends.bucket import Guard
from lightning_scale.optim.backends.device import constant
from lightning_scale.optim.backends.triton import launch
from lightning_scale.optim.layout import Layout, whole_layout

CPU = torch.device("cpu")


def test_a_kernel_runs_where_its_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """While torch's current device is another one."""
    current = ["cuda:0"]

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.device = str(device)

        def __enter__(self) -> None:
            current.append(self.device)

        def __exit__(self, *error: object) -> None:
            current.pop()

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: seen.append((current[-1], grid, args))

    seen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device", Device)
    first = SimpleNamespace(device=torch.device("cuda:1"))
    launch.launch(Kernel(), 3, first, 1.0)
    launch.launch(Kernel(), 0, first, 1.0)  # nothing to do
    assert seen == [("cuda:1", (3,), (first, 1.0))]
    assert current == ["cuda:0"]


def layout() -> Layout:
    return whole_layout(["w"], [torch.ones(2)])


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Any:
    state = SimpleNamespace(on=False)
    monkeypatch.setattr(constants, "is_capturing", lambda device: state.on)
    return state


def made(of: Layout, values: list[int]) -> Tensor:
    return constant(of, "addresses", values, torch.int64, CPU)


def test_what_a_graph_reads_outlives_the_steps_after_it(capturing: Any) -> None:
    of = layout()
    read = weakref.ref(made(of, [1, 2]))
    capturing.on = True
    assert made(of, [1, 2]) is read()
    capturing.on = False
    made(of, [3, 4])  # gradients have moved
    gc.collect()
    assert read() is not None and read().tolist() == [1, 2]  # type: ignore[union-attr]


def test_without_a_graph_nothing_is_kept(capturing: Any) -> None:
    of = layout()
    old = weakref.ref(made(of, [1, 2]))
    made(of, [3, 4])
    gc.collect()
    assert old() is None and not of.captured and not of.copied_by_graphs


def test_what_a_graph_copies_is_no_tensor_of_later_steps(capturing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is made when the graph is replayed: before that the target holds anything."""
    of, copies = layout(), []
    eager = made(of, [1, 2])
    to = Tensor.to

    def copied(self: Tensor, *args: Any, **options: Any) -> Tensor:
        if not options.get("non_blocking"):
            return to(self, *args, **options)
        copies.append((self, self.tolist()))
        return torch.zeros_like(self)  # not copied yet

    monkeypatch.setattr(Tensor, "to", copied)
    capturing.on = True
    of_graph, again = made(of, [3, 4]), made(of, [3, 4])
    capturing.on = False
    assert of_graph is not eager and again is not of_graph
    assert [numbers for _, numbers in copies] == [[3, 4]] * 2
    assert copies[0][0] is copies[1][0]  # one source for both, which is kept
    assert [kept for _, _, kept in of.copied_by_graphs] == [copies[0][0]]
    assert made(of, [1, 2]) is not of_graph
    assert made(of, [3, 4]) is not of_graph


def test_while_a_graph_is_captured_no_memory_is_pinned(capturing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step before, which a capture needs anyway, has pinned what takes the numbers."""
    of = layout()
    made(of, [1, 2])
    monkeypatch.setattr(constants, "_host_memory", lambda *of: pytest.fail("pinned"))
    capturing.on = True
    assert made(of, [3, 4]).tolist() == [3, 4]
    with pytest.raises(RuntimeError, match="Take one step outside of a graph before each capture"):
        made(of, [5, 6])  # another graph
    capturing.on = False
    monkeypatch.undo()
    made(of, [7, 8])
    monkeypatch.setattr(constants, "is_capturing", lambda device: True)
    assert made(of, [5, 6]).tolist() == [5, 6]


def test_a_graph_that_is_captured_again_keeps_nothing_twice(capturing: Any) -> None:
    of = layout()
    made(of, [1, 2])
    capturing.on = True
    for _ in range(3):
        made(of, [1, 2]), made(of, [3, 4])
    assert len(of.captured) == len(of.copied_by_graphs) == 1


def steps_of_one_layer_each(optimizer: Any, params: list[nn.Parameter]) -> Iterator[Layout]:
    """Models that leave out other layers at every step make new layouts, of which few are kept."""
    for p in params:
        for q in params:
            q.grad = torch.ones(3) if p is q else None
        optimizer.step()
        yield next(reversed(optimizer._plan._known[0].values()))[0].layout


@pytest.mark.parametrize("name", ["captured", "copied_by_graphs"])
def test_layouts_that_graphs_read_are_not_forgotten(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_plan, "_KEPT", 2)
    params = [nn.Parameter(torch.ones(3)) for _ in range(6)]
    optimizer = LAMB(params, fused=True)
    read = []
    for number, of in enumerate(steps_of_one_layer_each(optimizer, params)):
        if number < 3:
            getattr(of, name).append(torch.ones(1))
            read.append(of)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    kept = list(optimizer._plan.layouts())
    assert all(any(of is k for k in kept) for of in read)


def test_flags_of_forgotten_layouts_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may set one seconds after its step."""
    monkeypatch.setattr(step_plan, "_KEPT", 2)
    params = [nn.Parameter(torch.ones(3)) for _ in range(5)]
    optimizer = LAMB([(f"w{i}", p) for i, p in enumerate(params)], fused=True)
    first, *_ = [dict(of.gave_up) for of in steps_of_one_layer_each(optimizer, params)]
    assert len(list(optimizer._plan.layouts())) == 5
    first[CPU].fill_(1)
    with pytest.raises(IncompleteStep, match="in 'w0' the Triton"):
        optimizer.step()
    with pytest.raises(IncompleteStep, match="in 'w0' the Triton"):
        optimizer.state_dict()


@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_statistics_of_replays_follow_one_another(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph reads of the last step's statistics is where it writes its own, and outlives eager steps."""
    monkeypatch.setattr(layerwise, "is_capturing", lambda device: state.on)
    state = SimpleNamespace(on=False)
    p = nn.Parameter(torch.ones(4, 3))
    p.grad = torch.ones_like(p)
    optimizer = kind([p], lr=0.1, fused=False)
    finite = torch.ones((), dtype=torch.bool)
    monkeypatch.setattr(optimizer, "_decide", lambda gathered: Guard(finite))
    optimizer.step()
    before = optimizer.layer_stats()["0.0"]
    weak = [weakref.ref(norm) for _, norms in optimizer._stats for norm in norms]
    state.on = True
    optimizer.step()
    after = optimizer.layer_stats()["0.0"]
    assert [a.data_ptr() for a in after] == [b.data_ptr() for b in before]
    assert float(after.weight_norm) == float(before.weight_norm) != 12**0.5  # one memory, and this step's number
    state.on = False
    optimizer.step()
    del before, after
    gc.collect()
    assert all(norm() is not None for norm in weak)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["LAMB", "LARS", "LAMB8bit", "LARS8bit", "AdamW8bit", "SGD8bit"])
def test_whatever_torchs_default_device_is(name: str, fused: bool) -> None:
    """A process may have called ``torch.set_default_device``."""
    params = [nn.Parameter(torch.ones(shape)) for shape in ((70, 70), (3,))]
    for p in params:
        p.grad = torch.ones_like(p)
    with torch.device("meta"):
        optimizer = getattr(optim, name)(params, lr=0.1, fused=fused, max_grad_norm=1.0)
        optimizer.step()
        if fused:
            optimizer.fused = None
            assert self_check.triton_is_right(optimizer, params[0])
    assert int(optimizer.skipped_steps) == 0
    assert all(bool((p != 1).all()) for p in params)
