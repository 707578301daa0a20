"""What cannot run beside the window is refused with a sentence, before training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner

from lightning_scale.callbacks import (
    BatchSizeRamp,
    GradientAccumulation,
    LEGWWarmup,
    SequenceLengthStages,
    Stage,
    TrustRatioMonitor,
)
from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB
from tests.toys import Net, Tally, Vectors, indices, trainer

STAGE = Stage(sequence_length=8, steps=2, batch_size=8, micro_batch_size=4)


def lamb(module: L.LightningModule) -> Any:
    return LAMB(module.named_parameters(), lr=0.01)


def with_scheduler(module: L.LightningModule) -> Any:
    optimizer = lamb(module)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def refuse(
    root: Path, callbacks: list[L.Callback], sentence: str, module: Any = None, data: Any = None, **options: Any
) -> None:
    module = module or Net(lamb)
    with pytest.raises(ConfigurationError, match=sentence) as error:
        trainer(root, callbacks, max_epochs=1, **options).fit(module, Vectors() if data is None else data)
    assert "\n" not in str(error.value)
    assert getattr(module, "steps", []) == []


def test_two_owners_of_the_batch_size(tmp_path: Path) -> None:
    both = [GradientAccumulation(8), SequenceLengthStages([STAGE])]
    refuse(tmp_path, both, "GradientAccumulation and SequenceLengthStages both set the batch size: keep one")


def test_two_of_the_same(tmp_path: Path) -> None:
    refuse(tmp_path, [LEGWWarmup(4, "1 steps"), LEGWWarmup(8, "1 steps")], "two LEGWWarmup callbacks")


def test_lightnings_own_accumulation(tmp_path: Path) -> None:
    callbacks: list[L.Callback] = [GradientAccumulation(8)]
    refuse(tmp_path, callbacks, "leave accumulate_grad_batches out", accumulate_grad_batches=2)
    refuse(tmp_path, [*callbacks, GradientAccumulationScheduler({1: 2})], "remove GradientAccumulationScheduler")


def test_manual_optimization(tmp_path: Path) -> None:
    module = Net(lamb)
    module.automatic_optimization = False
    refuse(tmp_path, [GradientAccumulation(8)], "automatic_optimization = False", module)


def test_weight_averaging_that_takes_the_rate(tmp_path: Path) -> None:
    averaging = StochasticWeightAveraging(0.1)
    refuse(tmp_path, [LEGWWarmup(4, "1 steps"), averaging], "StochasticWeightAveraging takes over the learning rate")
    refuse(tmp_path, [GradientAccumulation(8), averaging], "takes over accumulation, which GradientAccumulation sets")


def test_a_scheduler_beside_a_stages_rate(tmp_path: Path) -> None:
    own_rate = Stage(sequence_length=8, steps=2, batch_size=8, micro_batch_size=4, lr=0.1)
    refuse(tmp_path, [SequenceLengthStages([own_rate])], "remove the scheduler, or the stage's lr", Net(with_scheduler))
    refuse(tmp_path, [SequenceLengthStages([STAGE])], "write decay: constant", Net(with_scheduler))


def test_another_max_steps(tmp_path: Path) -> None:
    refuse(tmp_path, [SequenceLengthStages([STAGE])], "the stages take 2 steps but trainer.max_steps is 7", max_steps=7)


def test_a_batch_that_micro_batches_cannot_make(tmp_path: Path) -> None:
    refuse(tmp_path, [GradientAccumulation(6)], "write batch_size 4 or 8", data=Vectors(4))


def test_a_batch_larger_than_an_epoch(tmp_path: Path) -> None:
    refuse(tmp_path, [GradientAccumulation(128, "drop")], "no step would ever be taken")
    with pytest.warns(UserWarning, match="steps will be on fewer samples than asked"):
        trainer(tmp_path, [GradientAccumulation(128)], max_epochs=1).fit(Net(lamb), Vectors())


def test_data_that_cannot_follow_stages(tmp_path: Path) -> None:
    class Plain(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            return indices(8, 4)

    refuse(
        tmp_path, [SequenceLengthStages([STAGE])], r"Plain has no method set_stage: add `def set_stage", data=Plain()
    )


def test_data_that_ignores_the_stage(tmp_path: Path) -> None:
    class Deaf(Vectors):
        def train_dataloader(self) -> Any:
            return indices(8, 2)

    refuse(
        tmp_path,
        [SequenceLengthStages([STAGE])],
        "micro_batch_size is 4 but the training loader's batch size is 2",
        data=Deaf(),
    )


def test_two_clips(tmp_path: Path) -> None:
    clipped = Net(lambda m: LAMB(m.named_parameters(), max_grad_norm=1.0))
    refuse(tmp_path, [LEGWWarmup(4, "1 steps")], "keep one of the two", clipped, gradient_clip_val=1.0)


def test_a_monitor_without_statistics(tmp_path: Path) -> None:
    plain = Net(lambda m: torch.optim.AdamW(m.parameters()))
    logger = CSVLogger(tmp_path)
    refuse(
        tmp_path, [TrustRatioMonitor()], "AdamW has none: use lightning_scale.optim.LAMB or LARS", plain, logger=logger
    )
    refuse(tmp_path, [TrustRatioMonitor()], "no logger")


def test_a_warmup_that_needs_what_nobody_knows(tmp_path: Path) -> None:
    class Endless(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(torch.randn(8, 8))

    loader = torch.utils.data.DataLoader(Endless(), batch_size=4)
    refuse(tmp_path, [LEGWWarmup(4, "1 epochs")], "write it in steps or samples", data=loader)


def test_objects_of_the_other_namespace(tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")
    foreign = other.callbacks.LearningRateMonitor()
    # Lightning itself refuses some of the other namespace's callbacks, in some versions.
    with pytest.raises(
        (ConfigurationError, TypeError), match=r"write `import lightning\.pytorch as L`|single import style"
    ):
        trainer(tmp_path, [foreign, GradientAccumulation(8)], max_epochs=1).fit(Net(lamb), Vectors())


def test_an_unused_rule_is_warned_of(tmp_path: Path) -> None:
    own_rate = Stage(sequence_length=8, steps=2, batch_size=8, micro_batch_size=4, lr=0.1)
    fit = trainer(tmp_path, [LEGWWarmup(4, "1 steps"), SequenceLengthStages([own_rate])], max_epochs=3)
    with (
        pytest.warns(UserWarning, match="LEGWWarmup is not used"),
        pytest.warns(UserWarning, match="max_epochs=3 is not used"),
    ):
        fit.fit(Net(lamb), Vectors())
    assert fit.global_step == 2


@pytest.mark.parametrize(
    ("warmup", "base_warmup", "warned"),
    [("0 steps", "1 steps", True), ("1 steps", "1 steps", False), ("0 steps", "0 steps", False)],
)
def test_a_stage_that_legw_warms_up_and_one_that_it_does_not(
    tmp_path: Path, warmup: str, base_warmup: str, warned: bool
) -> None:
    sizes = {"sequence_length": 8, "steps": 2, "batch_size": 8, "micro_batch_size": 4}
    stages = [Stage(**sizes), Stage(**sizes, lr=0.1, warmup=warmup)]
    fit = trainer(tmp_path, [LEGWWarmup(4, base_warmup), SequenceLengthStages(stages)], max_epochs=-1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(Net(lamb), Vectors())
    said = [str(w.message) for w in caught if "LEGWWarmup's warmup is not used" in str(w.message)]
    assert len(said) == warned
    assert all(sentence.startswith("stage 2 sets its own lr") for sentence in said)


class Tunable(Tally):
    def __init__(self) -> None:
        super().__init__(64)
        self.lr, self.batch_size = 1.0, 4

    def train_dataloader(self) -> Any:
        return indices(64, self.batch_size)


@pytest.mark.parametrize("callback", [GradientAccumulation(16), BatchSizeRamp("0:8 16:16"), LEGWWarmup(4)])
@pytest.mark.parametrize("name", ["lr_find", "scale_batch_size"])
@pytest.mark.parametrize("how", ["tuner", "callback"])
def test_lightnings_tuners(tmp_path: Path, callback: L.Callback, name: str, how: str) -> None:
    """Refused, and nothing is left behind: the next fit trains as if there had been none."""
    module = Tunable()
    finder = LearningRateFinder() if name == "lr_find" else BatchSizeFinder()
    more = [finder] if how == "callback" else []
    fit = trainer(tmp_path, [callback, *more], max_epochs=1)
    with pytest.raises(ConfigurationError, match=rf"^{name} .* {type(callback).__name__}"):
        fit.fit(module) if more else getattr(Tuner(fit), name)(module)
    assert type(fit) is L.Trainer and "_should_accumulate" not in vars(fit.fit_loop.epoch_loop)
    assert module.batch_size == 4 and module.lr == 1.0 and float(module.weight.detach().abs().sum()) == 0
    fresh, again = Tunable(), trainer(tmp_path, [callback], max_epochs=1)
    again.fit(fresh)
    fit.callbacks = [c for c in fit.callbacks if c is not finder]  # type: ignore[attr-defined]
    fit.fit(module)
    assert torch.equal(module.weight, fresh.weight) and fit.global_step == again.global_step
