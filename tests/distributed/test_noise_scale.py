"""Two processes: every rank's micro-batches count, before DDP averages them; strategies that keep gradients are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from lightning_scale.callbacks import BatchSizeRamp, GradientNoiseScale
from lightning_scale.errors import ConfigurationError
from tests.callbacks.test_noise_scale import Watched, anova
from tests.distributed.launch import run_ranks
from tests.distributed.meshes import needs_fsdp2
from tests.distributed.ranks import ddp_options
from tests.distributed.zero_runs import needs_deepspeed
from tests.toys import Vectors, trainer

pytestmark = pytest.mark.timeout(200)

CASES: dict[str, Any] = {
    "uneven": (8, [lambda: BatchSizeRamp("0:27 1M:28")], {}),
    "one micro-batch a rank": (6, [], {}),
    "Lightning's own accumulation": (4, [], {"accumulate_grad_batches": 3}),
}


def measure(folder: str) -> dict[str, Any]:
    return {name: measured(Path(folder), *CASES[name]) for name in CASES}


def measured(folder: Path, micro: int, owners: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    L.seed_everything(0, verbose=False)
    module, monitor = Watched(), GradientNoiseScale(2, smoothing=0.5, picture=False)
    parts = [monitor, *(make() for make in owners)]
    fit = trainer(folder, parts, max_epochs=1, **ddp_options(), **options)
    calls, real = [], torch.distributed.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(fit.global_step)
        return real(*args, **kwargs)

    torch.distributed.all_reduce = counted
    fit.fit(module, Vectors(micro))
    torch.distributed.all_reduce = real
    return {
        "units": module.units,
        "looks": {name: monitor.looks.row(name) for name in monitor.looks.names},
        "steps": monitor.looks.steps,
        "noise": monitor.noise.state_dict(),
        "calls": calls,
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(__name__, "measure", tmp_path_factory.mktemp("noise"))


@pytest.mark.parametrize("name", CASES)
def test_units_are_the_micro_batches_of_all_ranks(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert first["noise"] == second["noise"]
    assert first["steps"] == [k + 1 for k in first["units"] if k % 2 == 1]
    assert len(first["steps"]) >= 2
    for place, step in enumerate(first["steps"]):
        units = first["units"][step - 1] + second["units"][step - 1]
        assert first["looks"]["batch_size"][place] == sum(size for _, size in units)
        square, trace = anova(units)
        for rank in (first, second):
            assert rank["looks"]["seen_trace"][place] == pytest.approx(trace, rel=1e-5)
            assert rank["looks"]["seen_gradient_square"][place] == pytest.approx(square, rel=1e-5)


def test_one_collective_at_the_steps_that_are_looked_at(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["one micro-batch a rank"]  # nothing else asks the ranks there
        assert [found["calls"].count(step - 1) for step in found["steps"]] == [1] * len(found["steps"])
        assert [found["calls"].count(step) for step in found["steps"]] == [0] * len(found["steps"])


def refused(folder: str) -> str:
    return _refused(folder, "FSDP2Strategy")


def refused_zero(folder: str) -> str:
    return _refused(folder, "ZeROStrategy")


def _refused(folder: str, name: str) -> str:
    import lightning_scale.strategies as strategies

    strategy = getattr(strategies, name)()
    fit = trainer(Path(folder), [GradientNoiseScale(1)], max_steps=2, devices=2, strategy=strategy)
    try:
        fit.fit(Watched(), Vectors(4))
    except ConfigurationError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize(
    ("function", "strategy"),
    [
        pytest.param("refused", "FSDP2Strategy", marks=needs_fsdp2),
        pytest.param("refused_zero", "ZeROStrategy", marks=needs_deepspeed),
    ],
)
def test_strategies_that_keep_gradients_are_refused(tmp_path: Path, function: str, strategy: str) -> None:
    for said in run_ranks(__name__, function, tmp_path):
        assert f"{strategy} keeps neither whole on a rank: measure with strategy: ddp" in said
