"""Waiting inside a launch is bounded: a second pass whose first one never came gives up, says so, and nothing hangs."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from lightning_scale import optim
from lightning_scale.optim import self_check
from lightning_scale.optim.backends import triton as fused
from lightning_scale.optim.backends.bucket import IncompleteStep
from lightning_scale.optim.backends.triton import lamb, lars, launch, turns
from tests.optim.fused_kernels import module_of
from tests.optim.kinds import bits

MODULES = {"LAMB": lamb, "LARS": lars}
each = pytest.mark.parametrize("name", MODULES)
SHAPES = [(64, 65), (7,), (33, 4)]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(self_check, "_known", {})
    monkeypatch.setattr(self_check, "_tried", set())
    yield
    turns.one_launch_fails.clear()


@pytest.fixture
def no_first_pass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one launch's first pass is left out; the two launches are as they are."""
    source = Path(str(MODULES[name].__file__)).read_text()
    broken, found = re.subn(r"(?s)(    if item >= 0:\n).*?(    elif ratio_is_known)", r"\1        pass\n\2", source)
    assert found == 1
    mutant = module_of(broken, tmp_path)
    monkeypatch.setattr(MODULES[name], name.lower(), getattr(mutant, name.lower()))


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    for p in found:
        p.grad = torch.randn(p.shape, generator=generator)
    return found


def made(name: str, params: Any, **options: Any) -> Any:
    return getattr(optim, name)(params, lr=0.1, **options)


@each
@pytest.mark.timeout(60)
def test_a_step_without_its_first_pass_moves_nothing_and_the_next_one_says_it(name: str, no_first_pass: None) -> None:
    params = parameters()
    names = ["first", "second", "third"]
    optimizer = made(name, zip(names, params, strict=True), fused=True, skip_nonfinite=False)
    before = bits([p.detach() for p in params])
    optimizer.step()
    assert bits([p.detach() for p in params]) == before
    message = r"a step on cpu is incomplete: in '(first|second|third)' the Triton kernel's second pass gave up waiting"
    with pytest.raises(IncompleteStep, match=message):
        optimizer.step()
    with pytest.raises(IncompleteStep, match=message):  # nor is it saved
        optimizer.state_dict()
    assert bits([p.detach() for p in params]) == before


@each
def test_a_checkpoint_ends_it(name: str, no_first_pass: None, monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = made(name, params, fused=True)
    saved = optimizer.state_dict()
    optimizer.step()
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["state"] == saved["state"]
    optimizer.fused = False
    optimizer.step()


@each
def test_a_whole_step_says_nothing(name: str) -> None:
    params = parameters()
    optimizer = made(name, params, fused=True)
    for _ in range(2):
        optimizer.step()
    optimizer.state_dict()
    assert [int(flag) for layout in optimizer._plan.layouts() for flag in layout.gave_up.values()] == [0]


@each
def test_the_small_problem_sees_it_and_takes_two_launches(name: str, no_first_pass: None) -> None:
    params, others = parameters(), parameters()
    ours, theirs = made(name, params), made(name, others, fused=False)
    sentence = (
        f"{name} takes its two passes in two launches, which is slower: in one, the second waited for the first in vain"
    )
    with pytest.warns(UserWarning, match=sentence):
        assert self_check.triton_is_right(ours, params[0])
    assert turns.one_launch_fails == {torch.device("cpu")}
    ours.fused = True
    before = launch.launches
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours.step()
    assert launch.launches - before == 2 + 3 + (
        name == "LAMB"
    )  # the look at gradients; two passes and the norms; steps
    theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@each
def test_who_insists_is_told_too(name: str, no_first_pass: None) -> None:
    params = parameters()
    optimizer = made(name, params, fused=True)
    with pytest.warns(UserWarning, match="in two launches"):
        self_check.try_waiting(optimizer, params[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        self_check.try_waiting(optimizer, params[0])
    optimizer.step()
    optimizer.state_dict()


@pytest.mark.gpu
@each
@pytest.mark.timeout(200)
def test_a_gpu_gives_up(name: str, no_first_pass: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In less than the seconds of one wait for each program: who has given up stops the others."""
    monkeypatch.setattr(self_check, "try_waiting", lambda *of: None)
    monkeypatch.setattr("lightning_scale.optim.base.try_waiting", lambda *of: None)
    params = [nn.Parameter(torch.ones(2048, 1024, device="cuda")) for _ in range(8)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = made(name, params, fused=True)
    optimizer.step()
    with pytest.raises(IncompleteStep):
        optimizer.state_dict()
    assert all(bool((p == 1).all()) for p in params)


def test_every_wait_is_bounded() -> None:
    """No kernel has a loop that only another program can end."""
    conditions = [
        ast.unparse(node.test)
        for path in Path(fused.__path__[0]).glob("*.py")
        for function in ast.parse(path.read_text()).body
        if isinstance(function, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in function.decorator_list)
        for node in ast.walk(function)
        if isinstance(node, ast.While)
    ]
    assert conditions == ["(seen <= chunks) & (left > 0)"]
