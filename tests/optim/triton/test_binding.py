"""Every launch that a test makes through the interpreter goes through Triton's own binder, too; what that refuses fails.

And what the small problem has compiled that every optimizer tries first is what training then runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton

from lightning_scale import optim
from lightning_scale.optim import self_check
from lightning_scale.optim.backends import triton as fused
from lightning_scale.optim.base import OptimizerBase
from tests.optim.fused_kernels import module_of
from tests.optim.triton import stand_in
from tests.optim.triton.variants import OPTIMIZERS, Variant, parameters, take_step

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@each_optimizer
@pytest.mark.parametrize("sharded", [False, True])
def test_every_launch_is_bound(name: str, sharded: bool) -> None:
    from lightning_scale.optim.backends.triton import launch

    bound, launched = stand_in.bound, launch.launches
    take_step(Variant(name, sharded=sharded))
    assert stand_in.bound - bound == launch.launches - launched > 2


def module_named(optimizer: str) -> str:
    return optimizer.lower().removesuffix("8bit")


def changed(name: str, change: Callable[[str], str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let an optimizer launch kernels whose file has been changed."""
    path = Path(fused.__path__[0]) / f"{module_named(name)}.py"
    source = path.read_text()
    mutant = change(source)
    assert mutant != source
    patch.setattr(
        f"{fused.__name__}.{module_named(name)}.{name.lower()}", getattr(module_of(mutant, folder), name.lower())
    )


@each_optimizer
def test_an_argument_called_params_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's binder has a variable of that name from 3.3 on: no kernel with such an argument was ever launched on a GPU."""
    if triton.__version__.startswith("3.2."):
        pytest.skip("Triton 3.2 has no such variable")

    def renamed(source: str) -> str:
        kernels = re.split(r"(?m)^(?=@triton\.jit|def )", source)
        return "".join(
            re.sub(r"\bparameters\b", "params", part)
            if part.startswith("@triton.jit") or kernels[i - 1].startswith("@triton.jit")
            else part
            for i, part in enumerate(kernels)
        )

    changed(name, renamed, tmp_path, monkeypatch)
    with pytest.raises(TypeError, match="failed to specialize argument of type: dict"):
        take_step(Variant(name))


def a_fraction(args: list[Any], options: dict[str, Any]) -> None:
    for place, value in enumerate(args):
        if isinstance(value, float):
            args[place] = Fraction(value)
            break


def one_too_few(args: list[Any], options: dict[str, Any]) -> None:
    args.pop()


def one_too_many(args: list[Any], options: dict[str, Any]) -> None:
    args.append(1.0)


def an_unknown_option(args: list[Any], options: dict[str, Any]) -> None:
    options["TURNED"] = True


@each_optimizer
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            a_fraction,
            "failed to specialize argument of type: Fraction|'Fraction' object has no attribute",
        ),  # the interpreter takes it
        (one_too_few, "missing 1 required positional argument"),
        (one_too_many, "takes .* positional arguments? but|got multiple values for argument"),
        (an_unknown_option, "Keyword argument TURNED was specified but unrecognised"),  # the interpreter leaves it out
    ],
)
def test_a_launch_whose_arguments_do_not_fit_is_refused(
    name: str, sharded: bool, change: Callable[..., None], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_scale.optim.backends.triton import launch

    right = launch.launch

    def changed_launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
        own = list(args)
        change(own, options)
        right(kernel, programs, *own, **options)

    monkeypatch.setattr(f"{fused.__name__}.{'launch' if '8bit' in name else name.lower()}.launch", changed_launch)
    bound = stand_in.bound
    with pytest.raises((TypeError, KeyError, AttributeError), match=error):
        take_step(Variant(name, sharded=sharded))
    assert (
        stand_in.bound - bound <= 3
    )  # refused at the optimizer's own first launch, not by what the interpreter made of it


MODELS: dict[str, tuple[tuple[int, ...], ...]] = {
    "one tensor": ((200, 211),),
    "one scalar": ((),),
    "sixteen of each": tuple([(64, 64), (16,)] * 16),
    "seventeen": tuple([(65, 64)] * 17),
    "many chunks": ((16 * 4096,), (3 * 4096 + 5,)),
    "small ones": tuple([(3, 5)] * 32),
}


def compiled_so_far() -> dict[str, int]:
    return {
        launcher.kernel.fn.__qualname__ + launcher.kernel.module: len(launcher.specialized)
        for launcher in stand_in.launchers()
    }


WHOLE_NUMBERS: dict[str, dict[str, Any]] = {
    "LAMB": {"eps": 0, "weight_decay": 0, "betas": (0, 0.9), "weight_norm_clip": (0, 10), "trust_ratio_clip": (0, 1)},
    "LARS": {"eps": 0, "trust_coefficient": 1, "weight_norm_clip": (0, 10)},
    "LAMB8bit": {"eps": 0, "weight_decay": 0, "betas": (0, 0.9), "weight_norm_clip": (0, 10)},
    "LARS8bit": {"eps": 0, "trust_coefficient": 1},
    "AdamW8bit": {"eps": 1, "weight_decay": 0, "betas": (0, 0.9)},
    "SGD8bit": {"weight_decay": 1},
}


@each_optimizer
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("precision", "clip", "test"), [("float32", False, True), ("bf16-master", True, True), ("float32", True, False)]
)
def test_training_compiles_nothing_that_the_small_problem_has_not(
    name: str, precision: str, clip: bool, test: bool, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tensors and chunks there are; a count of one or of a multiple of sixteen is no constant of the kernel."""
    monkeypatch.setattr(
        OptimizerBase, "_counted", lambda self, result: result
    )  # as on a GPU, where the host does not look
    monkeypatch.setattr(stand_in, "_launchers", {})  # what other tests have compiled
    variant = Variant(name, precision, test, clip, sharded)

    def made(**options: Any) -> Any:
        made = getattr(optim, name)(parameters(variant), **{**variant.options(), **options})
        if sharded:
            made._plan.all_reduce = lambda sums: None
        return made

    with stand_in.bound_only():
        tried = made()
        where = self_check.where_of(tried, tried.param_groups[0]["params"][0])
        assert where.shared == sharded
        self_check.after_some_steps(tried, True, where)
        before = compiled_so_far()
        for shapes in MODELS.values():
            take_step(replace(variant, shapes=shapes), steps=2)
        made(lr=torch.tensor([0.0, 0.1])[1]).step()  # at an address that is no multiple of 16
        made(lr=1, **WHOLE_NUMBERS[name]).step()
    assert compiled_so_far() == before
