"""LARS and LAMB on ZeRO's flat tensors take the step of whole parameters, whatever the window."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from lightning_scale.optim.layout import LayerInfo, Layout, Run
from tests.distributed.launch import run_ranks
from tests.distributed.sharded import network
from tests.distributed.zero_cases import CASES, EACH_KIND, FEW, LAYERWISE, THE_REST, truth
from tests.distributed.zero_runs import needs_deepspeed, result, result_of, train, worst

pytestmark = [needs_deepspeed, pytest.mark.timeout(900)]


def ranks(folder: str) -> dict[str, Any]:
    return {name: result(Path(folder), CASES[name]) for name in EACH_KIND}


def ranks_with_the_rest(folder: str) -> dict[str, Any]:
    return {name: result(Path(folder), CASES[name]) for name in THE_REST}


def few_ranks(folder: str) -> dict[str, Any]:
    return {name: result(Path(folder), CASES[name]) for name in FEW}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(__name__, "ranks", tmp_path_factory.mktemp("zero"), 2, timeout=600)


@pytest.fixture(scope="module")
def found_of_the_rest(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(__name__, "ranks_with_the_rest", tmp_path_factory.mktemp("rest"), 2, timeout=600)


def check(name: str, found: list[dict[str, Any]], folder: Path) -> None:
    expected = truth(name, folder)
    for rank in found:
        weights, stats = worst(rank[name], expected)
        assert rank[name]["skipped"] == expected["skipped"] == (CASES[name].nan_at is not None)
        assert weights <= 2e-6 and stats <= 1e-5, (name, weights, stats)


@pytest.mark.parametrize("name", EACH_KIND)
def test_steps_are_those_of_whole_parameters(name: str, found: list[dict[str, Any]], tmp_path: Path) -> None:
    check(name, found, tmp_path)


PADDED = [
    "LAMB, stage 3",
    "LARS, offloaded, stage 3",
    "LAMB8bit, stage 3",
    "bfloat16, stage 3",
    "Trainer's clip, stage 3",
]


def ranks_on_unwritten_memory(folder: str) -> dict[str, Any]:
    """What was allocated and not written is NaN; and whether there was any."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    results = {}
    for name in PADDED:
        zero = CASES[name].zero or {}
        options = (zero.get("config") or {}).get("zero_optimization", {})
        small = {"zero_optimization": {"reduce_bucket_size": 10_000, **options}}  # else 2 GB are filled each time
        run, module = train(Path(folder), replace(CASES[name], zero={**zero, "config": small}))
        shares: list[Any] = [getattr(p, "ds_tensor", p) for p in module.parameters()]
        results[name] = {**result_of(run, module), "unwritten": any(bool(share.isnan().any()) for share in shares)}
    return results


def test_padding_is_never_read(tmp_path: Path) -> None:
    """DeepSpeed does not write what the last rank's shares of ZeRO-3 have too much."""
    found = run_ranks(__name__, "ranks_on_unwritten_memory", tmp_path, 2, timeout=600)
    assert all(case["unwritten"] for case in found[-1].values())
    for name in PADDED:
        check(name, found, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", THE_REST)
def test_each_kind_at_every_stage(name: str, found_of_the_rest: list[dict[str, Any]], tmp_path: Path) -> None:
    check(name, found_of_the_rest, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("world", [3, 4])
def test_on_more_ranks(world: int, tmp_path: Path) -> None:
    """The embedding of 78 elements then lies on three and on four ranks, and other layers on none but one."""
    found = run_ranks(__name__, "few_ranks", tmp_path, world, timeout=600)
    for name in FEW:
        check(name, found, tmp_path)


def few_naive_ranks(folder: str) -> dict[str, Any]:
    return naive_weights(Path(folder), [f"{name}, stage {stage}" for name in ("LAMB", "LARS") for stage in (1, 2, 3)])


def naive_ranks(folder: str) -> dict[str, Any]:
    return naive_weights(Path(folder), LAYERWISE)


def naive_weights(folder: Path, names: list[str]) -> dict[str, Any]:
    """What happens where a flat tensor is taken for a layer."""
    from lightning_scale.strategies.zero import step
    from lightning_scale.strategies.zero.flat import Flat
    from lightning_scale.strategies.zero.partitions import Partitions

    def naive(flat: Flat, number: int) -> Flat:
        (n,) = flat.layout.tensor_numels
        return replace(flat, layout=Layout((LayerInfo(str(number), n, 2),), (Run(0, 0, 0, 0, n),), (n,)))

    def taken_for_layers(kind: type[Partitions]) -> type[Partitions]:
        class Naive(kind):  # type: ignore[valid-type, misc]
            def flats(self) -> list[Flat]:
                return [naive(flat, i) for i, flat in enumerate(super().flats())]

        return Naive

    step._KINDS = {name: taken_for_layers(kind) for name, kind in step._KINDS.items()}
    step.check_whole = lambda *args: None
    return {name: result(folder, replace(CASES[name], nan_at=None))["weights"] for name in names}


@pytest.mark.parametrize("function", ["few_naive_ranks", pytest.param("naive_ranks", marks=pytest.mark.slow)])
def test_flat_tensors_taken_for_layers_are_noticed(function: str, tmp_path: Path) -> None:
    for rank in run_ranks(__name__, function, tmp_path, 2, timeout=600):
        for name, found in rank.items():
            expected = truth(name, tmp_path)
            weights, _ = worst({**expected, "weights": found}, expected)
            assert weights > 1e-4, name


class Count(L.Callback):
    """Counts collectives of the optimizer's in every step."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.calls = 0

    def on_train_start(self, *args: Any) -> None:
        from lightning_scale.optim.dtensor import AllReduce

        real = AllReduce.__call__

        def counted(this: AllReduce, tensor: torch.Tensor) -> None:
            self.calls += 1
            real(this, tensor)

        AllReduce.__call__ = counted  # type: ignore[method-assign]
        self.calls = 0

    def on_train_batch_end(self, *args: Any) -> None:
        if self.calls:
            self.steps.append(self.calls)
        self.calls = 0


COUNTED = {
    "LAMB, stage 1": 4,
    "LAMB-plain, stage 2": 3,
    "LARS, stage 2": 4,
    "LAMB, stage 3": 4,
    "LAMB, offloaded, stage 3": 4,
    "sub-groups below a layer": 11,
    "bfloat16, stage 1": 3,
    "Trainer's clip, stage 2": 5,
}
"""One for which layers have a gradient, one for the look at the gradients where there is one, one for the Trainer's clip, and
one a call: of a group, a sub-group (of which there are nine), or of all groups (``BF16_Optimizer``)."""


def ranks_counting(folder: str) -> dict[str, list[int]]:
    counts = {}
    for name in COUNTED:
        count = Count()
        train(Path(folder), replace(CASES[name], steps=3), [count])
        counts[name] = count.steps
    return counts


def test_collectives_of_a_step(tmp_path: Path) -> None:
    for counts in run_ranks(__name__, "ranks_counting", tmp_path, 2, timeout=600):
        assert counts == {name: [number] * 3 for name, number in COUNTED.items()}


def ranks_on_nan(folder: str) -> list[list[bool]]:
    """Of each stage: how often the warning came, and whether it was right."""
    found = []
    for stage in (1, 2, 3):
        case = replace(CASES[f"LAMB-plain, stage {stage}"], steps=3, nan_at=1)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            weights = result(Path(folder), case)["weights"]
        told = [w for w in seen if "skip_nonfinite=False is not used under ZeRO" in str(w.message)]
        found.append(
            [len(told) == (torch.distributed.get_rank() == 0), all(w.isfinite().all() for w in weights.values())]
        )
    return found


def test_deepspeed_does_not_step_on_nan(tmp_path: Path) -> None:
    for found in run_ranks(__name__, "ranks_on_nan", tmp_path):
        assert found == [[True, True]] * 3


def network_with_a_nan() -> torch.nn.Module:
    net = network()
    with torch.no_grad():
        net.layers[0].weight[2, 3] = torch.nan
    return net


def ranks_with_a_nan(folder: str) -> list[int]:
    """Skipped steps of each stage."""
    cases = [replace(CASES[f"LAMB, stage {stage}"], make_network=network_with_a_nan, steps=2) for stage in (1, 2, 3)]
    return [result(Path(folder), case)["skipped"] for case in cases]


def test_weights_that_are_nan_are_no_fault_of_deepspeed(tmp_path: Path) -> None:
    """Training starts, as it does without ZeRO, and every step is left out."""
    for skipped in run_ranks(__name__, "ranks_with_a_nan", tmp_path):
        assert skipped == [2, 2, 2]
