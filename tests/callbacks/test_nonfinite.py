"""One process: what is counted, where it is logged, when training ends; several ranks are in tests/distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_scale.callbacks import GradientAccumulation, NonfiniteMonitor
from lightning_scale.errors import ConfigurationError, NonfiniteGradientsError
from lightning_scale.optim import LAMB
from tests.toys import Net, Recorder, Vectors, trainer


class Poisoned(Net):
    """At some steps one parameter's gradient is not finite, or the loss is not."""

    def __init__(self, steps: set[int], parameter: str | None = "net.0.bias", optimizer: Any = None) -> None:
        super().__init__(optimizer or (lambda net: LAMB(net.named_parameters(), lr=0.01)))
        self._at, self._parameter = steps, parameter
        if parameter is not None:
            self.get_parameter(parameter).register_hook(self._poison)

    def _now(self) -> bool:
        return self.trainer.global_step in self._at

    def _poison(self, grad: Tensor) -> Tensor:
        return grad * torch.inf if self._now() else grad

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if self._parameter is None and self._now() else loss


def fit(root: Path, module: L.LightningModule, monitor: NonfiniteMonitor, *more: Any, **options: Any) -> L.Trainer:
    options = {"max_steps": 12, "max_epochs": -1, **options}
    path = options.pop("ckpt_path", None)
    run = trainer(root, [monitor, GradientAccumulation(8), *more], **options)
    run.fit(module, Vectors(4), ckpt_path=path)
    return run


def test_the_count_is_logged_where_it_changes(tmp_path: Path) -> None:
    logger = Recorder(tmp_path)
    run = fit(tmp_path, Poisoned({1, 4, 5, 9}), NonfiniteMonitor(3, 2), logger=logger)
    assert logger.values("skipped_steps") == {1: 1, 5: 3, 9: 4}  # looks after an even number of steps, counted from 0
    assert run.progress_bar_metrics["skipped_steps"] == 4


@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_end_names_the_layer_and_the_steps(tmp_path: Path, every: int, clip: float | None) -> None:
    """Steps 1, 2 and 3 (from 0), which are over when the later looks come, and another bad step beside them."""
    module = Poisoned({1, 2, 3, 6})
    with pytest.raises(NonfiniteGradientsError) as end:
        fit(tmp_path, module, NonfiniteMonitor(3, every), gradient_clip_val=clip)
    said = str(end.value)
    assert said.startswith("3 steps in a row were skipped, up to step 4,") and "\n" not in said
    assert "those of net.0.bias. The loss was finite on all ranks." in said
    assert module.trainer.global_step == {1: 4, 4: 4, 100: 12}[every]


def test_a_layer_that_is_added_later_is_named(tmp_path: Path) -> None:
    """Also where steps were skipped before it was there."""

    class Growing(Poisoned):
        def __init__(self) -> None:
            super().__init__({1, 4, 5, 6}, "net.3.weight", lambda net: LAMB(net.net[0].parameters(), lr=0.01))

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 3 and len(self.optimizers().param_groups) == 1:
                self.optimizers().add_param_group({"params": list(self.net[3].parameters())})

    with pytest.raises(NonfiniteGradientsError, match=r"those of net\.3\.weight\. The loss was finite"):
        fit(tmp_path, Growing(), NonfiniteMonitor(3, 1))


def test_a_bad_loss_is_told_apart(tmp_path: Path) -> None:
    """In the first micro-batch of two, too: the hook sees all of a window's."""
    module = Poisoned({2, 3}, None)
    with pytest.raises(
        NonfiniteGradientsError, match=r"those of net\.0\.weight, net\.0\.bias, .* not finite on rank 0\."
    ):
        fit(tmp_path, module, NonfiniteMonitor(2, 1))


def test_unnamed_parameters_have_the_modules_names(tmp_path: Path) -> None:
    module = Poisoned({2, 3}, optimizer=lambda net: LAMB(net.parameters(), lr=0.01))
    with pytest.raises(NonfiniteGradientsError, match=r"those of net\.0\.bias\."):
        fit(tmp_path, module, NonfiniteMonitor(2, 1))


def test_a_resume_goes_on_counting(tmp_path: Path) -> None:
    """Two skipped before the checkpoint, one after it; a finite step begins anew."""
    save = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="{step}")
    bad = {2, 3, 4}
    fit(tmp_path, Poisoned(bad), NonfiniteMonitor(3), save, max_steps=4, enable_checkpointing=True)
    path = tmp_path / "step=4.ckpt"
    with pytest.raises(NonfiniteGradientsError, match=r"3 steps in a row were skipped, up to step 5,"):
        fit(tmp_path, Poisoned(bad), NonfiniteMonitor(3, 1), ckpt_path=path)
    run = fit(tmp_path, Poisoned({2, 3, 5, 6}), NonfiniteMonitor(3, 1), ckpt_path=path)
    assert run.global_step == 12 and int(run.optimizers[0].skipped_steps) == 4


def test_the_same_callback_twice(tmp_path: Path) -> None:
    monitor = NonfiniteMonitor(2, 1)
    for _ in range(2):
        with pytest.raises(NonfiniteGradientsError, match="2 steps in a row were skipped, up to step 4"):
            fit(tmp_path, Poisoned({2, 3}), monitor)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (lambda net: torch.optim.AdamW(net.parameters()), "AdamW steps on NaN, too"),
        (lambda net: LAMB(net.parameters(), skip_nonfinite=False), "skip_nonfinite=False"),
    ],
)
def test_an_optimizer_that_does_not_skip_is_refused(tmp_path: Path, optimizer: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        fit(tmp_path, Net(optimizer), NonfiniteMonitor())


@pytest.mark.parametrize("arguments", [{"stop_after": 0}, {"every_n_steps": 0}])
def test_bad_numbers(arguments: Any) -> None:
    with pytest.raises(ValueError, match="is 0: give a whole number of at least 1"):
        NonfiniteMonitor(**arguments)
