"""The plan's steps are those that training takes: rate, batch, micro-batches and length, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation, LEGWWarmup, SequenceLengthStages, Stage
from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB
from lightning_scale.plan.dry_run import dry_run
from lightning_scale.schedule import LinearRamp
from tests.toys import Net, Vectors, trainer


class Seen(NamedTuple):
    """What a step was, by what training itself shows."""

    step: int
    samples: int
    batch_size: int
    micro_batches: int
    micro_batch_size: int
    sequence_length: int | None
    lr: float
    epoch: int


class Witness(L.Callback):
    """Sees every micro-batch and the rate in the optimizer when it steps; asks nothing of the package."""

    def __init__(self) -> None:
        self.steps: list[Seen] = []
        self._sizes: list[int] = []
        self._samples = 0
        self._stepped: float | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._sizes.append(len(batch[0]))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.optimizers[0].register_step_pre_hook(self._step)

    def _step(self, optimizer: Optimizer, *args: Any) -> None:
        self._stepped = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._stepped is None:
            return
        self._samples += sum(self._sizes)
        stage = getattr(trainer.datamodule, "stage", None)  # type: ignore[attr-defined]
        self.steps.append(
            Seen(
                trainer.global_step,
                self._samples,
                sum(self._sizes),
                len(self._sizes),
                max(self._sizes),
                stage.sequence_length if stage is not None else None,
                self._stepped,
                trainer.current_epoch + 1,
            )
        )
        self._sizes, self._stepped = [], None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._samples += sum(self._sizes)  # micro-batches that last_window="drop" leaves out
        self._sizes = []


class Plain(Vectors):
    """100 vectors from a loader that knows nothing of batches."""

    def __init__(self, micro_batch_size: int, size: int = 100) -> None:
        super().__init__(micro_batch_size)
        self.size = size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.utils.data.Subset(self.dataset, range(self.size)), batch_size=self.micro_batch_size)


def lamb(module: L.LightningModule) -> Any:
    return LAMB(module.named_parameters(), lr=0.01)


def scheduled(make: Callable[[Optimizer], Any], **options: Any) -> Callable[[L.LightningModule], Any]:
    def configure(module: L.LightningModule) -> Any:
        optimizer = SGD(module.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **options}}

    return configure


def one_cycle(module: L.LightningModule) -> Any:
    optimizer = SGD(module.parameters(), lr=0.01)
    total = int(module.trainer.estimated_stepping_batches)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": OneCycleLR(optimizer, 0.1, total_steps=total), "interval": "step"},
    }


STAGES = [
    Stage(8, 5, 16, 4, lr=0.1, warmup="40%", power=0.5, decay_from="stage_start"),
    Stage(16, 4, 8, 2, lr=0.05, warmup="0.1 epochs", decay="cosine"),
]
LEGW_STAGES = [Stage(8, 4, 24, 8), Stage(32, 6, "0:6 20:10", 4, decay="constant")]

CASES: dict[str, tuple[Callable[[], Vectors], Callable[[], list[L.Callback]], Any, dict[str, Any]]] = {
    "stages": (Vectors, lambda: [SequenceLengthStages(STAGES)], lamb, {}),
    "stages, LEGW and a growing batch": (
        Vectors,
        lambda: [SequenceLengthStages(LEGW_STAGES), LEGWWarmup(6, "3 steps")],
        lamb,
        {},
    ),
    "a ramp of all sizes, LEGW in epochs": (
        lambda: Vectors(5),
        lambda: [BatchSizeRamp(LinearRamp(7, 31, "150 samples")), LEGWWarmup(7, "0.4 epochs")],
        lamb,
        {"max_epochs": 3},
    ),
    "a ramp that drops": (
        lambda: Vectors(5),
        lambda: [BatchSizeRamp("0:8 90:30", lr_scaling="sqrt", last_window="drop")],
        lamb,
        {"max_epochs": 4},
    ),
    "a plain loader, short last micro-batches, a ramp": (
        lambda: Plain(7),
        lambda: [BatchSizeRamp("0:14 120:21", lr_scaling="linear")],
        lamb,
        {"max_epochs": 3},
    ),
    "a plain loader, accumulation that drops": (
        lambda: Plain(8, 92),
        lambda: [GradientAccumulation(24, last_window="drop")],
        lamb,
        {"max_epochs": 3},
    ),
    "Lightning's own accumulation": (
        lambda: Plain(8, 92),
        list,
        scheduled(lambda o: StepLR(o, 2, 0.5), interval="step", frequency=2),
        {"max_epochs": 2, "accumulate_grad_batches": 3},
    ),
    "a scheduler by epochs": (
        lambda: Plain(10),
        lambda: [GradientAccumulation(30)],
        scheduled(lambda o: ExponentialLR(o, 0.5), interval="epoch"),
        {"max_epochs": 3},
    ),
    "a scheduler that compounds, under LEGW, cut off by steps": (
        lambda: Vectors(5),
        lambda: [BatchSizeRamp("0:10 40:20"), LEGWWarmup(5, "4 steps")],
        scheduled(lambda o: ExponentialLR(o, 0.9), interval="step", frequency=2),
        {"max_steps": 9},
    ),
    "a scheduler that asks for the number of steps": (
        lambda: Vectors(5),
        lambda: [BatchSizeRamp("0:10 140:23")],
        one_cycle,
        {"max_epochs": 3},
    ),
    "a limited epoch": (
        lambda: Vectors(5),
        lambda: [GradientAccumulation(10)],
        lamb,
        {"max_epochs": 2, "limit_train_batches": 9},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_training_does_what_was_planned(name: str, tmp_path: Path) -> None:
    data, callbacks, configure, options = CASES[name]
    with torch.device("meta"):
        planned = dry_run(Net(configure), data(), callbacks(), options, world_size=1).schedule
    witness = Witness()
    trainer(tmp_path, [*callbacks(), witness], **options).fit(Net(configure), datamodule=data())
    found = [
        Seen(
            s.step,
            s.samples,
            s.batch_size,
            s.micro_batches,
            s.micro_batch_size,
            s.sequence_length,
            s.lr,
            s.epoch,
        )
        for s in planned.steps
    ]
    assert found == witness.steps  # the rates to the last bit
    assert planned.totals.steps == len(witness.steps) > 3


def test_a_plan_refuses_what_training_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as planned, torch.device("meta"):
        dry_run(Net(lamb), Plain(4), [SequenceLengthStages(STAGES)], {}, world_size=1)
    with pytest.raises(ConfigurationError, match="micro_batch_size") as trained:
        trainer(tmp_path, [SequenceLengthStages(STAGES)]).fit(Net(lamb), datamodule=Plain(4))
    assert str(planned.value) == str(trained.value)


def test_more_ranks_make_more_of_each_micro_batch() -> None:
    with torch.device("meta"):
        steps = dry_run(Net(lamb), Vectors(5), [GradientAccumulation(60)], {"max_steps": 2}, 4).schedule.steps
    assert [(s.batch_size, s.micro_batches, s.micro_batch_size) for s in steps] == [(60, 3, 5), (40, 2, 5)]


def test_plain_loaders_get_a_share_for_each_rank() -> None:
    with torch.device("meta"):
        steps = dry_run(Net(lamb), Plain(5), [GradientAccumulation(30)], {"max_epochs": 1}, 3).schedule.steps
    # 34 samples a rank, two of them twice: 3 windows of 2 micro-batches, and one of 4 samples a rank
    assert [s.batch_size for s in steps] == [30, 30, 30, 12]
    assert steps[-1].samples == 102


def test_the_model_takes_no_memory() -> None:
    with torch.device("meta"):
        model = Net(lamb)
    dry_run(model, Vectors(5), [GradientAccumulation(10)], {"max_steps": 2}, 1)
    assert all(p.is_meta for p in model.parameters())


def test_an_endless_run_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nothing says where training ends"), torch.device("meta"):
        dry_run(Net(lamb), Vectors(5), [GradientAccumulation(10)], {"max_epochs": -1}, 1)


def test_marks_lie_where_rates_and_sizes_change() -> None:
    """In the third epoch of five; the mark is at the end of the last step before the change."""
    with torch.device("meta"):
        plan = dry_run(Net(lamb), Vectors(5), [BatchSizeRamp("0:10 215:30")], {"max_epochs": 5}, 1).schedule
    (mark,) = plan.marks
    sizes = [step.batch_size for step in plan.steps]
    assert mark.text == "batch reaches 30" and plan.steps[mark.step - 1].samples >= 215
    assert sizes.index(30) == mark.step

    with torch.device("meta"):
        plan = dry_run(
            Net(lamb), Vectors(5), [SequenceLengthStages(LEGW_STAGES), LEGWWarmup(6, "3 steps")], {}, 1
        ).schedule
    assert [(mark.step, mark.text) for mark in plan.marks] == [
        (3, "warmup of stage 1 ends"),
        (4, "stage 2 begins"),
        (7, "warmup of stage 2 ends"),
        (8, "batch reaches 10"),
    ]
