"""The table of norms and ratios goes to every logger in one call, every n steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_scale.callbacks import GradientAccumulation, TrustRatioMonitor
from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB, LARS
from tests.toys import Net, Recorder, SaveAt, Vectors, trainer


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
    kinds = ("weight_norm", "update_norm", "trust_ratio", "step_size")
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


class Moved(L.Callback):
    """‖w' - w‖ / ‖w‖ of every parameter in every step, measured."""

    def __init__(self) -> None:
        self.sizes: list[dict[str, float]] = []

    def on_before_optimizer_step(self, fit: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self._before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def on_train_batch_end(self, fit: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        moved = {n: float((p - self._before[n]).norm() / self._before[n].norm()) for n, p in module.named_parameters()}
        self.sizes.append(moved)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: LAMB(g, lr=0.02, weight_decay=0.1),
        lambda g: LAMB(g, lr=torch.tensor(0.02), exclude_1d=False, trust_ratio_clip=(0.1, 0.5)),
        lambda g: LARS(g, lr=0.02, trust_norm="momentum", weight_decay=0.1),
        lambda g: LARS(g, lr=2.0, momentum=0.0, trust_coefficient=0.2),
    ],
)
def test_step_sizes_are_how_far_the_weights_go(tmp_path: Path, make: Any) -> None:
    """With two groups, and a rate that a scheduler changes after every step."""

    def configure(module: Any) -> Any:
        named = list(module.named_parameters())
        optimizer = make([{"params": named[:2], "lr": 0.05}, {"params": named[2:]}])
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    monitor, moved = TrustRatioMonitor(1, picture=False), Moved()
    module = Net(configure)
    trainer(tmp_path, [monitor, moved], max_steps=4, logger=Recorder(tmp_path)).fit(module, Vectors(4))
    assert monitor.step_sizes.steps == [1, 2, 3, 4]
    for name in moved.sizes[0]:
        measured = [sizes[name] for sizes in moved.sizes]
        assert monitor.step_sizes.row(name) == pytest.approx(measured, rel=2e-4)  # float32 weights, small steps
        assert measured[0] > measured[3]


def test_layers_that_do_not_adapt_have_no_ratio_to_watch(tmp_path: Path) -> None:
    monitor = TrustRatioMonitor(1, picture=False)
    module = Net(lambda m: LAMB(m.named_parameters(), lr=0.01))
    nn.init.zeros_(module.net[3].weight)  # its ratio is 1 in the first step
    trainer(tmp_path, [monitor], max_steps=1, logger=Recorder(tmp_path)).fit(module, Vectors(4))
    assert monitor.ratios.names == ["net.0.weight", "net.3.weight"]
    assert monitor.ratios.row("net.3.weight") == [1.0]
    assert monitor.step_sizes.table().isnan().sum() == 1  # there is nothing to compare its step with


def test_histograms_go_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, "", "")
    monitor = TrustRatioMonitor(2, picture=False)
    module = Net(lambda m: LAMB(m.named_parameters(), lr=0.01))
    trainer(tmp_path, [monitor], max_steps=4, logger=logger).fit(module, Vectors(4))
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0}).Reload()
    for tag, looks in (("trust_ratios", monitor.ratios), ("log10_step_sizes", monitor.step_sizes)):
        table = looks.table() if tag == "trust_ratios" else looks.table().log10()
        found = events.Histograms(tag)
        assert [event.step for event in found] == [0, 1, 3]
        for column, event in enumerate(found):
            seen = event.histogram_value
            assert seen.num == len(looks.names)
            assert (seen.min, seen.max) == pytest.approx(
                (float(table[:, column].min()), float(table[:, column].max())), rel=1e-5
            )


def test_a_warning_names_the_layer(tmp_path: Path) -> None:
    module = Net(lambda m: LAMB(m.named_parameters(), lr=0.01, trust_ratio_clip=(0.0, 0.01)))
    monitor = TrustRatioMonitor(1, band=(0.5, 2.0), patience=3, picture=False)
    with pytest.warns(UserWarning, match="TrustRatioMonitor") as said:
        trainer(tmp_path, [monitor], max_steps=6, logger=Recorder(tmp_path)).fit(module, Vectors(4))
    ours = [str(w.message) for w in said if "TrustRatioMonitor" in str(w.message)]
    assert ours == [
        "TrustRatioMonitor, step 1: the trust ratio of net.0.weight (0.01), net.3.weight (0.01) is outside of the band"
        " 0.5 to 2.",
        "TrustRatioMonitor, step 3: the trust ratio of net.0.weight, net.3.weight is at the upper bound of its clip, 0.01,"
        " for 3 looks in a row.",
    ]


def test_a_resumed_runs_picture_is_whole(tmp_path: Path) -> None:
    def run(monitor: TrustRatioMonitor, steps: int, *more: L.Callback, ckpt: Path | None = None) -> TrustRatioMonitor:
        L.seed_everything(0, verbose=False)
        module = Net(lambda m: LAMB(m.named_parameters(), lr=0.01))
        parts = [GradientAccumulation(8), monitor, *more]
        trainer(tmp_path, parts, max_steps=steps, logger=Recorder(tmp_path)).fit(module, Vectors(4), ckpt_path=ckpt)
        return monitor

    saved = tmp_path / "some.ckpt"
    whole = run(TrustRatioMonitor(2, dir=str(tmp_path)), 9)
    run(TrustRatioMonitor(2, picture=False), 5, SaveAt(saved, 8))
    again = run(TrustRatioMonitor(2, picture=False), 9, ckpt=saved)
    assert again.ratios.steps == whole.ratios.steps == [1, 2, 4, 6, 8]
    assert torch.equal(again.ratios.table(), whole.ratios.table())
    assert torch.equal(again.step_sizes.table(), whole.step_sizes.table())
    assert again.state_dict()["watch"] == whole.state_dict()["watch"]
    png = (tmp_path / "trust_ratios.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 10_000


def test_a_run_that_fails_leaves_its_picture_and_its_own_exception(tmp_path: Path) -> None:
    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3:
                raise RuntimeError("boom")
            return super().training_step(batch, batch_idx)

    module = Fails(lambda m: LAMB(m.named_parameters(), lr=0.01))
    fit = trainer(tmp_path, [TrustRatioMonitor(1, dir=str(tmp_path))], max_steps=9, logger=Recorder(tmp_path))
    with pytest.raises(RuntimeError, match="boom"):
        fit.fit(module, Vectors(4))
    assert (tmp_path / "trust_ratios.png").exists()


def test_without_matplotlib_there_is_a_word_and_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_scale.monitoring.picture.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"pip install 'lightning_scale\[pictures\]'"):
        fit(tmp_path, lambda m: LAMB(m.named_parameters(), lr=0.01), 1, 1)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"band": (2.0, 1.0)}, "band is"),
        ({"band": (-1.0, 1.0)}, "give the smallest and the largest ratio"),
        ({"patience": 0}, "patience is 0"),
    ],
)
def test_a_band_or_a_patience_that_is_none_is_refused(options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrustRatioMonitor(**options)


def test_an_optimizer_without_statistics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"layer_stats\(\), and SGD has none"):
        fit(tmp_path, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), 1, 1)
