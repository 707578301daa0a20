"""The noise scale of training: each step's terms are those of its own micro-batches, and unbiased."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation, GradientNoiseScale, LEGWWarmup
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB
from tests.toys import Net, Recorder, SaveAt, Vectors, trainer

MEAN = torch.tensor([0.4, -0.2, 0.1, 0.0, 0.3])
SPREAD = torch.tensor([1.0, 2.0, 0.5, 0.1, 1.5])


class Linear(L.LightningModule):
    """Sample x has the gradient x, whatever the weights."""

    def __init__(self, items: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5))
        self._items = items

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x, counts = batch
        if not self._items:
            return (x @ self.weight).mean()
        return {"loss": ((x @ self.weight) * counts).sum() / counts.sum(), "num_items": counts.sum()}

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.01)


def samples(count: int, micro_batch: int, plain: bool = False) -> tuple[TensorDataset, DataLoader[Any]]:
    draw = torch.Generator().manual_seed(2)
    x = MEAN + SPREAD * torch.randn(count, 5, generator=draw)
    dataset = TensorDataset(x, torch.randint(1, 7, (count,), generator=draw))
    if plain:
        return dataset, DataLoader(dataset, batch_size=micro_batch)
    return dataset, DataLoader(dataset, batch_sampler=ResumableBatchSampler(count, micro_batch, shuffle=False, seed=0))


def seen(monitor: GradientNoiseScale) -> dict[str, list[float]]:
    return {name: monitor.looks.row(name) for name in monitor.looks.names}


class Watched(Net):
    """Notes every micro-batch's gradient, computed by itself, and its size; a list for each step."""

    def __init__(self) -> None:
        super().__init__(lambda m: SGD(m.parameters(), lr=0.05))
        self.units: dict[int, list[tuple[Tensor, float]]] = {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        grads = torch.autograd.grad(loss, list(self.parameters()), retain_graph=True)
        unit = (torch.cat([g.flatten() for g in grads]).double(), float(len(batch[0])))
        self.units.setdefault(self.trainer.global_step, []).append(unit)
        return loss


def anova(units: Sequence[tuple[Tensor, float]]) -> tuple[float, float]:
    """|G|² and tr Σ of micro-batches and their sizes, by the analysis of variance."""
    total = sum(size for _, size in units)
    mean = torch.stack([g * size / total for g, size in units]).sum(dim=0)
    trace = sum(size * float((g - mean).square().sum()) for g, size in units) / (len(units) - 1)
    return float(mean.square().sum()) - trace / total, trace


def test_over_many_steps_both_terms_are_the_truth(tmp_path: Path) -> None:
    """Sizes 7 to 40 in micro-batches of at most 8, uneven and sometimes single."""
    module, monitor = Linear(), GradientNoiseScale(1, picture=False)
    ramp = BatchSizeRamp("0:7 200:9 800:17 4K:40")
    trainer(tmp_path, [ramp, monitor], max_epochs=1).fit(module, samples(16_000, 8)[1])
    found = seen(monitor)
    assert set(found["batch_size"]) >= {9, 17, 40}
    assert 7 not in found["batch_size"]  # one micro-batch: nothing to compare
    assert len(monitor.looks) > 500
    for name, truth in (("seen_gradient_square", MEAN.square().sum()), ("seen_trace", SPREAD.square().sum())):
        values = torch.tensor(found[name], dtype=torch.float64)
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - float(truth)) < 4 * error
        assert error < 0.15 * float(truth)


@pytest.mark.parametrize("fp16", [False, True])
def test_a_step_is_compared_with_its_own_micro_batches(tmp_path: Path, fp16: bool) -> None:
    """17 samples as 6 + 6 + 5, and an epoch's last 15 as 8 + 7; clipping comes later."""
    torch.manual_seed(0)
    module, monitor = Watched(), GradientNoiseScale(1, smoothing=0.0, picture=False)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=128.0)) if fp16 else None
    ramp = BatchSizeRamp("0:17 1M:18")
    options = {"max_epochs": 1, "gradient_clip_val": 1e-3, "plugins": [scaled] if scaled else None}
    trainer(tmp_path, [monitor, ramp], **options).fit(module, Vectors(8))
    assert [[size for _, size in step] for step in module.units.values()] == [[6, 6, 5]] * 5 + [[8, 7]]
    found = seen(monitor)
    assert found["batch_size"] == [17] * 5 + [15]
    for k, units in module.units.items():
        square, trace = anova(units)
        rel = 1e-2 if fp16 else 1e-5  # the two passes round to float16 at different scales
        assert found["seen_trace"][k] == pytest.approx(trace, rel=rel)
        assert found["seen_gradient_square"][k] == pytest.approx(square, rel=rel)


def test_lightnings_own_accumulation(tmp_path: Path) -> None:
    """Its last window of an epoch is divided by as many micro-batches as it should have had: the mean is meant."""
    torch.manual_seed(0)
    module, monitor = Watched(), GradientNoiseScale(1, smoothing=0.0, picture=False)
    loader = DataLoader(Vectors().dataset, batch_size=10)  # of 100: 4 + 4 + 2 micro-batches
    trainer(tmp_path, [monitor], max_epochs=1, accumulate_grad_batches=4).fit(module, loader)
    found = seen(monitor)
    assert found["batch_size"] == [40, 40, 20]
    for k, units in module.units.items():
        square, trace = anova(units)
        assert found["seen_trace"][k] == pytest.approx(trace, rel=1e-5)
        assert found["seen_gradient_square"][k] == pytest.approx(square, rel=1e-5)


def test_items_count_where_the_loss_is_a_mean_over_them(tmp_path: Path) -> None:
    monitor, module = GradientNoiseScale(1, smoothing=0.0, picture=False), Linear(items=True)
    dataset, loader = samples(40, 4)
    trainer(tmp_path, [monitor, GradientAccumulation(20)], max_epochs=1).fit(module, loader)
    found = seen(monitor)
    x, counts = (t.double() for t in dataset.tensors)
    for k in range(2):
        units = []
        for first in range(20 * k, 20 * k + 20, 4):
            n = counts[first : first + 4]
            units.append(((x[first : first + 4] * n[:, None]).sum(0) / n.sum(), float(n.sum())))
        square, trace = anova(units)
        per_sample = sum(n for _, n in units) / 20
        assert found["seen_gradient_square"][k] == pytest.approx(square, rel=1e-4, abs=1e-6)
        assert found["seen_trace"][k] == pytest.approx(trace / per_sample, rel=1e-5)


def test_looks_and_logs_every_n_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_scale.monitoring import GradientNormHooks

    opened, logger, monitor = [], Recorder(tmp_path), GradientNoiseScale(3, picture=False)
    real = GradientNormHooks.open
    monkeypatch.setattr(GradientNormHooks, "open", lambda hooks: (opened.append(1), real(hooks))[1])
    module, data = Watched(), Vectors(4)
    fit = trainer(tmp_path, [monitor, GradientAccumulation(8)], max_steps=7, logger=logger)
    fit.fit(module, data)
    assert len(opened) == 4  # two steps of two micro-batches
    assert set(logger.values("noise_scale/batch_size")) == {2, 5}  # as loggers count, from 0
    assert set(logger.values("noise_scale/batch_size").values()) == {8}
    assert logger.values("noise_scale/trace")[5] == monitor.noise.trace
    critical = monitor.noise.critical_batch_size
    if critical is not None:
        assert logger.values("critical_batch_size")[5] == critical
        assert float(fit.callback_metrics["critical_batch_size"]) == pytest.approx(critical)
    assert all(not p._backward_hooks for p in module.parameters())


def test_training_is_the_same_beside_it_and_resumes_to_the_bit(tmp_path: Path) -> None:
    def run(callbacks: list[L.Callback], steps: int, ckpt: Path | None = None) -> Net:
        L.seed_everything(0, verbose=False)
        module = Net(lambda m: LAMB(m.named_parameters(), lr=0.01))
        parts = [LEGWWarmup(8, "3 steps"), BatchSizeRamp("0:8 24:13"), *callbacks]
        trainer(tmp_path, parts, max_steps=steps).fit(module, Vectors(4), ckpt_path=ckpt)
        return module

    whole = GradientNoiseScale(2, picture=False)
    without, beside = run([], 12), run([whole], 12)
    assert all(torch.equal(a, b) for a, b in zip(without.parameters(), beside.parameters(), strict=True))
    saved = tmp_path / "some.ckpt"
    run([GradientNoiseScale(2, picture=False), SaveAt(saved, 15)], 8)
    again = GradientNoiseScale(2, picture=False)
    run([again], 12, saved)
    assert again.noise.state_dict() == whole.noise.state_dict()
    assert again.looks.steps == whole.looks.steps == [2, 4, 6, 8, 10, 12]
    assert torch.equal(again.looks.table().nan_to_num(-1), whole.looks.table().nan_to_num(-1))


def test_a_picture_at_the_end(tmp_path: Path) -> None:
    module, data = Watched(), Vectors(4)
    monitor = GradientNoiseScale(1, dir=str(tmp_path / "pictures"))
    trainer(tmp_path, [monitor, GradientAccumulation(16)], max_steps=6).fit(module, data)
    png = (tmp_path / "pictures/gradient_noise_scale.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 10_000


@pytest.mark.parametrize(
    ("callbacks", "accumulate"), [([], 1), ([GradientAccumulation(8)], 1), ([BatchSizeRamp("0:4 16:8")], 1)]
)
def test_a_single_micro_batch_a_step_is_refused(tmp_path: Path, callbacks: list[L.Callback], accumulate: int) -> None:
    module, data = Watched(), Vectors(8)
    fit = trainer(tmp_path, [*callbacks, GradientNoiseScale(1)], max_steps=2, accumulate_grad_batches=accumulate)
    with pytest.raises(ConfigurationError, match="every step has one: make the loader's batch smaller"):
        fit.fit(module, data)
    assert fit.global_step == 0


class Reentrant(Net):
    """One layer is used in two parts of the backward pass."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0].requires_grad_()
        first = checkpoint(self.net, x, use_reentrant=True)
        second = checkpoint(self.net, 2 * x, use_reentrant=True)
        return (first + second).square().mean()


def test_gradients_in_parts_are_said_and_not_measured(tmp_path: Path) -> None:
    module = Reentrant(lambda m: SGD(m.parameters(), lr=0.05))
    monitor = GradientNoiseScale(1, picture=False)
    with pytest.warns(UserWarning, match="write use_reentrant=False"):
        trainer(tmp_path, [monitor, GradientAccumulation(8)], max_steps=3).fit(module, Vectors(4))
    assert len(monitor.looks) == 0


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        GradientNoiseScale(0)


def test_manual_optimization_is_refused(tmp_path: Path) -> None:
    module, data = Watched(), Vectors(4)
    module.automatic_optimization = False
    with pytest.raises(ConfigurationError, match="GradientNoiseScale needs automatic optimization"):
        trainer(tmp_path, [GradientNoiseScale(1)], max_steps=2).fit(module, data)


class Late(L.LightningModule):
    """A backbone that begins to train in the second epoch; the weights stay, so that all runs see the same gradients."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Linear(8, 16), nn.Linear(16, 1)
        self._how = how
        self.backbone.requires_grad_(how in ("always", "freezes"))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.head(self.backbone(batch[0]).tanh()) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        return SGD(self.head.parameters() if self._how == "adds a group" else self.parameters(), lr=0.0)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1 and self._how in ("freezes", "unfreezes", "adds a group"):
            self.backbone.requires_grad_(self._how != "freezes")
            for p in self.backbone.parameters():
                p.grad = None
            if self._how == "adds a group":
                self.trainer.optimizers[0].add_param_group({"params": list(self.backbone.parameters())})


@pytest.mark.parametrize(("how", "same"), [("unfreezes", "always"), ("adds a group", "always"), ("freezes", "never")])
def test_layers_that_begin_or_cease_to_train(tmp_path: Path, how: str, same: str) -> None:
    """In the second epoch the terms are those of a run in which they always did, or never."""

    def last(how: str) -> tuple[float, float]:
        noise = GradientNoiseScale(every_n_steps=4, smoothing=0.0, picture=False)
        data = DataLoader(Vectors().dataset, batch_size=4)
        trainer(tmp_path, [GradientAccumulation(20), noise], max_epochs=2).fit(Late(how), data)
        assert noise.noise.trace is not None and noise.noise.gradient_square is not None
        return noise.noise.trace, noise.noise.gradient_square

    assert last(how) == pytest.approx(last(same), rel=1e-5)
