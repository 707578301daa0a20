"""Rates that finetuning callbacks, modules and schedulers set, beside LEGWWarmup: each step's is theirs times the factor.

The truth is the same run without LEGWWarmup.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, LearningRateMonitor
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.callbacks import GradientAccumulation, LEGWWarmup
from lightning_scale.plan.dry_run import dry_run
from tests.toys import Recorder, trainer

FACTOR = 4.0  # batch 16, tuned at 1
Hook = Callable[..., None]


class Tuned(L.LightningModule):
    """Notes the rates that its optimizer steps with."""

    def __init__(self, configure: Callable[[Any], Any] | None = None, tensor: bool = False) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(8, 8), nn.Linear(8, 1)
        self.rates: list[list[float]] = []
        self._configure, self._tensor = configure, tensor

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.head(self.backbone(batch[0])).square().mean()

    def configure_optimizers(self) -> Any:
        lr: Any = torch.tensor(0.1) if self._tensor else 0.1
        optimizer = SGD([p for p in self.parameters() if p.requires_grad], lr=lr)
        optimizer.register_step_pre_hook(lambda *args: self.rates.append([float(g["lr"]) for g in groups(self)]))
        return optimizer if self._configure is None else self._configure(optimizer)


def groups(module: L.LightningModule) -> list[dict[str, Any]]:
    return module.trainer.optimizers[0].param_groups


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=8)


def run(tmp_path: Path, make: Callable[[], Any], callbacks: Callable[[], list[Any]], *own: Any, **options: Any) -> Any:
    module = make()
    fit = trainer(tmp_path, [*own, *callbacks()], **{"max_epochs": 3, **options})
    fit.fit(module, data())
    return module.rates


def assert_composes(tmp_path: Path, make: Callable[[], Any], callbacks: Callable[[], list[Any]] = list) -> None:
    plain = run(tmp_path, make, callbacks, accumulate_grad_batches=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lightning_scale.*")
        ours = run(tmp_path, make, callbacks, GradientAccumulation(16), LEGWWarmup(base_batch_size=1))
    assert [[FACTOR * lr for lr in step] for step in plain] == [pytest.approx(step, rel=1e-6) for step in ours]
    assert len({tuple(step) for step in plain}) > 1  # somebody has set them


def setter(hook: str, new: Callable[[float, int], float]) -> Callable[[], list[L.Callback]]:
    """A callback that sets the first group's rate in a hook, from the one that it reads there and the step."""

    def make() -> list[L.Callback]:
        callback = L.Callback()

        def sets(trainer: L.Trainer, *args: Any) -> None:
            group = trainer.optimizers[0].param_groups[0]
            value = new(float(group["lr"]), trainer.global_step)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

        setattr(callback, hook, sets)
        return [callback]

    return make


HOOKS = ["on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_validation_end"]
WAYS: dict[str, Callable[[float, int], float]] = {
    "given": lambda lr, step: 0.1 / (1 + step),
    "from the present": lambda lr, step: lr * 0.9,
}


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_rate_that_a_callback_sets(tmp_path: Path, hook: str, way: str, tensor: bool) -> None:
    class Validated(Tuned):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            pass

        def val_dataloader(self) -> Any:
            return data()

    assert_composes(tmp_path, lambda: Validated(tensor=tensor), setter(hook, WAYS[way]))


def test_a_rate_that_is_set_when_training_starts(tmp_path: Path) -> None:
    plain = run(tmp_path, Tuned, setter("on_train_start", lambda lr, step: 0.05))
    ours = run(tmp_path, Tuned, setter("on_train_start", lambda lr, step: 0.05), LEGWWarmup(base_batch_size=2))
    assert plain[0] == [0.05] and ours[0] == pytest.approx([2 * 0.05])


@pytest.mark.parametrize("when", ["before the step", "after it"])
def test_a_warmup_in_optimizer_step(tmp_path: Path, when: str) -> None:
    """As Lightning's documentation writes it."""

    class Warmed(Tuned):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
            def warm() -> None:
                for group in optimizer.param_groups:
                    group["lr"] = min(1.0, (self.trainer.global_step + 1) / 5) * 0.1

            if when == "before the step":
                warm()
            optimizer.step(closure=closure)
            if when == "after it":
                warm()

    assert_composes(tmp_path, Warmed)


def test_backbone_finetuning(tmp_path: Path) -> None:
    assert_composes(tmp_path, Tuned, lambda: [BackboneFinetuning(1, lambda epoch: 1.5, backbone_initial_lr=0.01)])


@pytest.mark.parametrize("explicit", [None, 0.03])
@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start"])
def test_a_group_that_is_added(tmp_path: Path, hook: str, explicit: float | None) -> None:
    """At a tenth of the present rate, or at one that is given."""

    def make() -> list[L.Callback]:
        callback = L.Callback()

        def adds(trainer: L.Trainer, module: Any, *args: Any) -> None:
            if trainer.current_epoch == 1 and len(trainer.optimizers[0].param_groups) == 1:
                BaseFinetuning.unfreeze_and_add_param_group(module.backbone, trainer.optimizers[0], lr=explicit)

        callback.setup = lambda trainer, module, stage: BaseFinetuning.freeze(module.backbone)  # type: ignore[method-assign]
        setattr(callback, hook, adds)
        return [callback]

    assert_composes(tmp_path, Tuned, make)


@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "on_train_epoch_end"])
def test_inside_of_a_step_what_is_read_and_written_has_the_factor(tmp_path: Path, hook: str) -> None:
    """A warning says so; a rate that is made of the present one composes there, too."""
    callbacks = setter(hook, lambda lr, step: lr / 2 if step == 4 else lr)
    plain = run(tmp_path, Tuned, callbacks, accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match=r"was set to 0\.2 inside of a step, where .* multiplied rates by 4"):
        ours = run(tmp_path, Tuned, callbacks, GradientAccumulation(16), LEGWWarmup(base_batch_size=1))
    assert [[FACTOR * lr for lr in step] for step in plain] == [pytest.approx(step, rel=1e-6) for step in ours]


@pytest.mark.parametrize("interval", ["step", "epoch", None])
def test_learning_rate_monitor_shows_the_rate_of_the_step(tmp_path: Path, interval: Any) -> None:
    def halved(optimizer: Any) -> Any:
        return [optimizer], [LambdaLR(optimizer, lambda epoch: 0.5**epoch)]

    logger = Recorder(tmp_path)
    callbacks = [GradientAccumulation(16), LEGWWarmup(base_batch_size=1), LearningRateMonitor(interval)]
    module = Tuned(halved)
    trainer(tmp_path, callbacks, max_epochs=3, logger=logger, log_every_n_steps=1).fit(module, data())
    shown = [metrics["lr-SGD"] for metrics, _ in logger.calls if "lr-SGD" in metrics]
    assert sorted(set(shown)) == pytest.approx([0.1, 0.2, 0.4]) and [step[0] for step in module.rates][::4] == [
        0.4,
        0.2,
        0.1,
    ]


def test_checkpoints_and_the_end_have_the_users_own_rates(tmp_path: Path) -> None:
    module, path = Tuned(), tmp_path / "x.ckpt"

    class Saves(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
            assert groups(module)[0]["lr"] == pytest.approx(0.4)
            trainer.save_checkpoint(path)
            assert groups(module)[0]["lr"] == pytest.approx(0.4)

    fit = trainer(tmp_path, [GradientAccumulation(16), LEGWWarmup(base_batch_size=1), Saves()], max_epochs=1)
    fit.fit(module, data())
    saved = torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in saved] == [0.1] == [group["lr"] for group in fit.optimizers[0].param_groups]


RISING = {
    "a warmup of its own": lambda o: LambdaLR(o, lambda step: min(1.0, step / 4)),
    "linear, then as it is": lambda o: SequentialLR(o, [LinearLR(o, 0.1, 1.0, 3), LambdaLR(o, lambda step: 1.0)], [3]),
    "one cycle": lambda o: OneCycleLR(o, 0.1, total_steps=30),
}


@pytest.mark.parametrize("where", ["fit", "plan"])
@pytest.mark.parametrize("name", RISING)
def test_two_warmups_are_warned_of(tmp_path: Path, name: str, where: str) -> None:
    def configure(optimizer: Any) -> Any:
        return [optimizer], [{"scheduler": RISING[name](optimizer), "interval": "step"}]

    callbacks = [GradientAccumulation(16), LEGWWarmup(16, "4 steps")]
    said = "raises the rate while LEGWWarmup warms it up, and the two multiply"
    if where == "fit":
        with pytest.warns(UserWarning, match=said):
            trainer(tmp_path, callbacks, max_epochs=2).fit(Tuned(configure), data())
        return

    class Planned(Tuned):
        def train_dataloader(self) -> Any:
            return data()

    planned = dry_run(Planned(configure), None, callbacks, {"max_epochs": 2}, 1)
    assert any(said in note for note in planned.schedule.rules.notes)


def test_one_warmup_is_not_warned_of(tmp_path: Path) -> None:
    def configure(optimizer: Any) -> Any:
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda step: 1 / (1 + step)), "interval": "step"}]

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*warms it up.*")
        run(tmp_path, lambda: Tuned(configure), list, GradientAccumulation(16), LEGWWarmup(16, "4 steps"))
        late = lambda o: ([o], [{"scheduler": LambdaLR(o, lambda step: max(1.0, step / 5)), "interval": "step"}])  # noqa: E731
        run(tmp_path, lambda: Tuned(late), list, GradientAccumulation(16), LEGWWarmup(16, "4 steps"))
