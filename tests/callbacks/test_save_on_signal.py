"""Signals in one process; several ranks are in tests/launch."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_scale.callbacks import ExactResume, GradientAccumulation, Resume, SaveOnSignal, ValidateEvery
from lightning_scale.data import ResumableBatchSampler
from tests.toys import Net, trainer


class Send(L.Callback):
    """Signals its own process in a hook, when so many steps were taken."""

    def __init__(self, hook: str, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number, self.sent = step, number, False
        self.in_sanity_check = "sanity" in hook
        setattr(self, hook, self._send)

    def _send(self, run: L.Trainer, *args: Any) -> None:
        if run.global_step >= self.step and not self.sent and run.sanity_checking == self.in_sanity_check:
            self.sent = True
            os.kill(os.getpid(), self.number)


def fit(root: Path, more: list[L.Callback], steps: int = 8, **options: Any) -> tuple[L.Trainer, Net]:
    """Windows of two micro-batches, dropout, validation every three steps."""
    torch.manual_seed(0)
    module = Net(lambda net: torch.optim.Adam(net.parameters(), lr=0.01), dropout=0.3)
    data = torch.utils.data.TensorDataset(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)))
    loader = torch.utils.data.DataLoader(data, batch_sampler=ResumableBatchSampler(40, 4))
    callbacks = [
        GradientAccumulation(8), ExactResume(), ValidateEvery("3 steps"), *more, Resume(), SaveOnSignal(**options),
    ]  # fmt: skip
    save = ModelCheckpoint(every_n_train_steps=100)
    run = trainer(
        root, [*callbacks, save], num_sanity_val_steps=1, max_steps=steps, max_epochs=-1, enable_checkpointing=True
    )  # fmt: skip
    run.fit(module, loader, torch.utils.data.DataLoader(data, batch_size=8))
    return run, module


def saved(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize(
    ("hook", "at", "expected"),
    [
        ("on_train_batch_start", 2, 3),  # a window's first micro-batch: its last one ends the step
        ("on_before_zero_grad", 2, 3),
        ("on_before_optimizer_step", 3, 4),
        ("on_validation_batch_start", 3, 3),  # answered at validation's end
        ("on_validation_end", 6, 6),
        ("on_train_start", 0, 1),
        ("on_sanity_check_end", 0, 1),
    ],
)
def test_ends_at_the_next_step_and_goes_on_with_the_same_bits(
    tmp_path: Path, hook: str, at: int, expected: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    _, whole = fit(tmp_path / "whole", [])
    with pytest.raises(SystemExit) as end:
        fit(tmp_path / "cut", [Send(hook, at)])
    assert end.value.code == 143
    assert saved(tmp_path / "cut") == [f"signal-step={expected}.ckpt"]
    run, rest = fit(tmp_path / "cut", [])
    assert run.global_step == 8 and rest.steps[0][0] == expected
    assert [*rest.steps] == whole.steps[expected:]
    for mine, theirs in zip(rest.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_status_is_that_of_the_signal(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, [Send("on_train_batch_start", 2, signal.SIGUSR1)])
    assert end.value.code == 138


def test_the_last_two_stay(tmp_path: Path) -> None:
    for step in (1, 3, 5):
        with pytest.raises(SystemExit):
            fit(tmp_path, [Send("on_train_batch_start", step)])
    assert saved(tmp_path) == ["signal-step=4.ckpt", "signal-step=6.ckpt"]
    assert len(list((tmp_path / "checkpoints").glob("*.json"))) == 2


def test_a_signal_that_is_not_named_is_left_alone(tmp_path: Path) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        fit(tmp_path, [Send("on_train_batch_start", 2, signal.SIGUSR1)], signals=["SIGTERM"])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == [signal.SIGUSR1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"signals": ["SIGTREM"]}, "SIGTREM"), ({"signals": ["SIGKILL"]}, "handled"), ({"keep": 0}, "keep is 0")],
)
def test_bad_arguments(arguments: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        SaveOnSignal(**arguments)
