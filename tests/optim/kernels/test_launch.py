"""Where kernels are launched, and what the host's numbers need that a CUDA graph reads: on stand-ins for GPUs."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from lightning_scale.optim import LAMB, members
from lightning_scale.optim.kernels import constants
from lightning_scale.optim.kernels.constants import constant
from lightning_scale.optim.kernels.fused import launch
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
    assert old() is None and not of.captured


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
    assert any(kept is copies[0][0] for _, _, kept in of.captured)
    assert made(of, [1, 2]) is not of_graph
    assert made(of, [3, 4]) is not of_graph


def test_while_a_graph_is_captured_no_memory_is_pinned(capturing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step before, which a capture needs anyway, has pinned what takes the numbers."""
    of = layout()
    made(of, [1, 2])
    monkeypatch.setattr(constants, "_host_memory", lambda *of: pytest.fail("pinned"))
    capturing.on = True
    assert made(of, [3, 4]).tolist() == [3, 4]
    monkeypatch.undo()


def test_a_layout_that_a_graph_reads_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that leave out other layers at every step make new layouts, of which few are kept."""
    monkeypatch.setattr(members, "_KEPT", 2)
    params = [nn.Parameter(torch.ones(3)) for _ in range(6)]
    optimizer = LAMB(params, fused=True)
    layouts = []
    for p in params:
        for q in params:
            q.grad = torch.ones(3) if p is q else None
        optimizer.step()
        layouts.append(next(iter(optimizer._sorting._known[0].values()))[0].layout if not layouts else None)
        kept = list(optimizer._sorting.layouts())
        kept[-1].captured.append(("key", None, torch.ones(1))) if p is params[0] else None
    kept = list(optimizer._sorting.layouts())
    assert layouts[0] in kept and len(kept) == 2
