"""The table of norms and ratios goes to every logger in one call, every n steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from lightning_scale.callbacks import GradientAccumulation, TrustRatioMonitor
from lightning_scale.optim import LAMB, LARS
from tests.toys import Net, Recorder, Vectors, trainer


def fit(
    root: Path, optimizer: Any, every: int, steps: int
) -> tuple[Net, list[tuple[dict[str, float], int]], L.Trainer]:
    module, logger = Net(optimizer), Recorder(root)
    run = trainer(root, [TrustRatioMonitor(every), GradientAccumulation(8)], max_steps=steps, logger=logger)
    run.fit(module, Vectors(4))
    return module, [(m, s) for m, s in logger.calls if any("trust_ratio/" in key for key in m)], run


@pytest.mark.parametrize("optimizer", [LAMB, LARS])
def test_every_parameter_in_one_call(tmp_path: Path, optimizer: Any) -> None:
    module, calls, run = fit(tmp_path, lambda m: optimizer(m.named_parameters(), lr=0.01), 3, 7)
    assert [step for _, step in calls] == [0, 2, 5]  # the steps as loggers count them, from 0
    names = [name for name, _ in module.named_parameters()]
    kinds = ("weight_norm", "update_norm", "trust_ratio")
    assert set(calls[0][0]) == {f"{kind}/{name}" for kind in kinds for name in names}


def test_values_are_those_of_the_optimizer(tmp_path: Path) -> None:
    module, calls, run = fit(tmp_path, lambda m: LAMB(m.named_parameters(), lr=0.01), 2, 2)
    optimizer: Any = run.optimizers[0]
    for name, stats in optimizer.layer_stats().items():
        assert calls[-1][0][f"trust_ratio/{name}"] == float(stats.trust_ratio)
        assert calls[-1][0][f"update_norm/{name}"] == float(stats.update_norm)
    assert calls[-1][0]["trust_ratio/net.0.bias"] == 1
    ratios = sorted(float(s.trust_ratio) for n, s in optimizer.layer_stats().items() if n.endswith("weight"))
    assert float(run.progress_bar_metrics["trust_ratio_min"]) == pytest.approx(ratios[0], rel=1e-6)
    assert float(run.progress_bar_metrics["trust_ratio_max"]) == pytest.approx(ratios[-1], rel=1e-6)


def test_other_steps_do_not_ask(tmp_path: Path) -> None:
    asked = []

    class Asked(LAMB):
        def layer_stats(self) -> Any:
            asked.append(self.state[self.param_groups[0]["params"][0]]["step"].item())
            return super().layer_stats()

    fit(tmp_path, lambda m: Asked(m.named_parameters(), lr=0.01), 4, 9)
    assert asked == [1, 4, 8]


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        TrustRatioMonitor(0)


def test_unnamed_parameters_are_numbered(tmp_path: Path) -> None:
    _, calls, _ = fit(tmp_path, lambda m: LAMB(m.parameters(), lr=0.01), 1, 1)
    assert "trust_ratio/0.0" in calls[0][0]
    assert torch.isfinite(torch.tensor(list(calls[0][0].values()))).all()
