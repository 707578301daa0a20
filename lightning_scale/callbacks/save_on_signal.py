"""A checkpoint before a preempted run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_scale.checkpoints import checkpoint_folders
from lightning_scale.hosts import host_group
from lightning_scale.lightning_internals import after_lightnings_handlers

_NAME = "signal-step={step}.ckpt"


class SaveOnSignal(L.Callback):
    """On SIGTERM or SIGUSR1, at any rank, all ranks save together after the optimizer step under way, and end.

    The process ends with status 128 + the signal's number: 143 after SIGTERM, 138 after SIGUSR1. The checkpoint is
    ``signal-step=N.ckpt`` in the folder of the first ModelCheckpoint, or in ``checkpoints`` in ``default_root_dir``; the
    last ``keep`` of them stay. The loggers' row of that last step is not written. Put it last: what a callback after it
    would have noted of that step is not in the checkpoint.

    Ranks ask each other after every step whether one of them was signalled: one number, over gloo between the hosts, also
    where gradients go over NCCL, so that no GPU is waited for. During validation there is no answer; at its end there is:
    the scheduler's grace period must hold the longer of a step and a validation, and a save.

    Lightning's own handlers are replaced while training runs: for SIGTERM it starts a collective inside the handler, which
    on several ranks meets whatever collective the others are in, and for SIGUSR1 under SLURM it saves inside the handler.
    Asking SLURM to requeue the job is left to the job's script, which sees the exit status.

    Args:
        signals: Names of the signals.
        keep: How many of these checkpoints stay, at least 1.

    Raises:
        ValueError: for an unknown signal, one that cannot be handled, or ``keep`` below 1.
    """

    def __init__(self, signals: Sequence[str] = ("SIGTERM", "SIGUSR1"), keep: int = 2) -> None:
        for name in signals:
            if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
                raise ValueError(f"signals has {name!r}: write names of signals that can be handled, such as SIGTERM.")
        if keep < 1:
            raise ValueError(f"keep is {keep}: write how many checkpoints stay, 1 or more.")
        self.signals = tuple(signals)
        self.keep = keep
        self._received = 0
        self._last_step = 0
        self._group: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_group": None}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._received = 0
        self._group = None
        if trainer.world_size > 1:
            self._group = host_group()
        after_lightnings_handlers(trainer, self._register)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step

    def _register(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            rank_zero_warn("SaveOnSignal does nothing, for only a process's main thread gets signals.")
            return
        for name in self.signals:
            signal.signal(signal.Signals[name], self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = max(self._received, number)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self._end_if_signalled(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._end_if_signalled(trainer)

    def _end_if_signalled(self, trainer: L.Trainer) -> None:
        """Between two steps, where all ranks come."""
        number = self._agreed(trainer)
        if not number:
            return
        folder = checkpoint_folders(trainer)[0]
        path = folder / _NAME.format(step=trainer.global_step)
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            earlier = sorted(folder.glob(_NAME.format(step="*")), key=lambda saved: saved.stat().st_mtime_ns)
            for old in earlier[: -self.keep]:
                trainer.strategy.remove_checkpoint(old)
        rank_zero_info(f"{signal.Signals(number).name}: saved {path}, ending with status {128 + number}.")
        raise SystemExit(128 + number)

    def _agreed(self, trainer: L.Trainer) -> int:
        """The signal that some rank got, the greatest number of several; 0 for none."""
        if trainer.world_size == 1:
            return self._received
        greatest = torch.tensor([self._received])
        torch.distributed.all_reduce(greatest, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(greatest)
