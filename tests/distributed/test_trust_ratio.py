"""What TrustRatioMonitor sees of whole layers is the same under every strategy, and one rank writes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_scale.callbacks import BatchSizeRamp, TrustRatioMonitor
from tests.distributed.launch import run_ranks
from tests.distributed.meshes import FSDP2
from tests.distributed.zero_runs import DEEPSPEED, Case, train
from tests.toys import Recorder

pytestmark = pytest.mark.timeout(400)

CASES = {
    # (A ramp takes batches that full micro-batches do not make up: 12 samples on each rank.)
    "DDP": Case(steps=4, batch=lambda: BatchSizeRamp("0:24 1M:25"), fit={"strategy": "ddp", "devices": 2}),
    **({"FSDP2": Case(steps=4, fsdp2={})} if FSDP2 else {}),
    **(
        {
            f"ZeRO-{stage}{', offloaded' if offload else ''}": Case(
                steps=4, zero={"stage": stage, "offload_optimizer": offload}
            )
            for stage, offload in ((1, None), (2, "cpu"), (3, None))
        }
        if DEEPSPEED
        else {}
    ),
}


def watched(folder: Path, case: Case) -> dict[str, Any]:
    logger, monitor = Recorder(folder / "logs"), TrustRatioMonitor(2, band=(0.0, 1e-9), dir=str(folder))
    train(folder, replace(case, fit={**case.fit, "logger": logger}), [monitor])
    picture = folder / "trust_ratios.png"
    return {
        "ratios": dict(zip(monitor.ratios.names, monitor.ratios.table().tolist(), strict=True)),
        "step_sizes": dict(zip(monitor.step_sizes.names, monitor.step_sizes.table().tolist(), strict=True)),
        "written": sorted({step for metrics, step in logger.calls if any("trust_ratio/" in key for key in metrics)}),
        "picture": picture.exists(),
    }


def ranks(folder: str) -> dict[str, Any]:
    found = {}
    for name, case in CASES.items():
        own = Path(folder) / f"{name}-{torch.distributed.get_rank() if torch.distributed.is_initialized() else 'any'}"
        own.mkdir(exist_ok=True)
        found[name] = watched(own, case)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(__name__, "ranks", tmp_path_factory.mktemp("ranks"), timeout=300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return watched(tmp_path_factory.mktemp("whole"), Case(steps=4))


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_written_by_one_rank(name: str, found: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    for rank in found:
        for kind in ("ratios", "step_sizes"):
            assert rank[name][kind].keys() == whole[kind].keys()
            for layer, expected in whole[kind].items():
                assert rank[name][kind][layer] == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert [rank[name]["written"] for rank in found] == [[0, 1, 3], []]
