"""All ranks end when one has failed, hangs or was killed, and say which one it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch

from lightning_scale.lightning_internals import launched_processes
from lightning_scale.watchdog import Failure, Watchdog, connect

FIRST = "_lightning_scale_first_failure"
"""Attribute of an exception that only follows from another rank's failure: that one, as a string."""

_OF_A_LOST_RANK = re.compile(
    r"[Cc]onnection (closed|reset)|[Tt]imed out|Broken pipe|recvValue|heartbeat|NCCL|Gloo|gloo"
)


class FailTogether(L.Callback):
    """Where one rank fails, all end within seconds, with a status that is not 0, and each log names that rank and why.

    Without it ranks wait in a collective for one that will not come: for as long as the process group's timeout is (30
    minutes), or for ever.

    - **A rank raises**: the others are told its error at once, and end with status 1 three seconds later. Where their own
      collective fails meanwhile, the exception's text says first what the other rank raised.
    - **A rank is killed, or crashes**: its connection ends, and rank 0 tells the others.
    - **A rank hangs**: after ``hang_seconds`` without any progress rank 0 names the rank that came less far than the others,
      and every rank prints where its training thread is.
    - **A machine is lost**: nothing was heard of its ranks for ``silent_seconds``.

    Ranks talk over one TCP connection each with rank 0, beside the process group, from a thread. It watches ``fit``, from
    the callbacks' ``setup`` on; what happens before that, the launcher sees. With one process it does nothing.

    Args:
        hang_seconds: Longer than anything takes between two hooks: the first batch of an epoch with its workers, a
            micro-batch, a checkpoint.
        silent_seconds: Longer than Python may stand still in a rank (a function of an extension that keeps the
            interpreter's lock).
        port: Where rank 0 listens for the others; None: on any port that is free. Give one where only some are open between
            hosts; it is another one than MASTER_PORT.

    Raises:
        ValueError: for times that are not positive, and for a port that is none.
        OSError: where a rank cannot reach rank 0.
    """

    def __init__(self, hang_seconds: float = 1200.0, silent_seconds: float = 120.0, port: int | None = None) -> None:
        for name, seconds in (("hang_seconds", hang_seconds), ("silent_seconds", silent_seconds)):
            if not seconds > 0:
                raise ValueError(f"{name} is {seconds}: write a number of seconds above 0.")
        if port is not None and not 0 < port < 65536:
            raise ValueError(f"port is {port}: write a number from 1 to 65535, or leave it out.")
        self.port = port
        self.hang_seconds = hang_seconds
        self.silent_seconds = silent_seconds
        self._watchdog: Watchdog | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.world_size == 1:
            return
        strategy: Any = trainer.strategy
        connections = connect(
            trainer.global_rank,
            trainer.world_size,
            strategy.cluster_environment.main_address,
            strategy.broadcast,
            port=self.port or 0,
        )
        self._watchdog = Watchdog(
            trainer.global_rank,
            connections,
            self.hang_seconds,
            self.silent_seconds,
            _killer_of_children(trainer),
            runs_ahead=strategy.root_device.type != "cpu",
        )
        self._watchdog.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._watchdog is not None:
            self._watchdog.arrive()
            trainer.strategy.barrier("all ranks have ended fit")  # until then there is somebody to wait for
            self._watchdog.close()
            self._watchdog = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            if not isinstance(exception, SystemExit):
                _killer_of_children(trainer)()  # they may wait for this one to set up
            return
        if isinstance(exception, SystemExit):
            watchdog.leave(exception.code if isinstance(exception.code, int) else int(exception.code is not None))
            return
        follows = _follows(exception)
        first = watchdog.fail(f"raised {_told(exception)}", follows)
        if follows and first.rank != trainer.global_rank:  # an error of this rank's own is told as it is
            _augment(exception, first)

    # -- how far this rank has come; all ranks come the same way -------------------------------------------------------

    def _passed(self, trainer: L.Trainer, hook: str) -> None:
        if self._watchdog is not None:
            self._watchdog.passed(f"{hook} of step {trainer.global_step}")

    def on_fit_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_fit_start")

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_train_start")

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_train_epoch_start")

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_train_batch_start")

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_before_backward")

    def on_after_backward(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_after_backward")

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_before_optimizer_step")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_train_batch_end")

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_train_epoch_end")

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_validation_batch_start")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_validation_batch_end")

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_validation_end")

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_save_checkpoint")

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._passed(trainer, "on_train_end")


def first_failure(exception: BaseException) -> str | None:
    """Of an exception that only follows from another rank's failure: that one."""
    return getattr(exception, FIRST, None)


def _told(exception: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(exception).split())
    return f"{type(exception).__name__}{': ' + text[:500] if text else ''}"


def _follows(exception: BaseException) -> bool:
    """Whether it may be what the end of another rank looks like."""
    if isinstance(exception, torch.distributed.DistError):
        return True
    return isinstance(exception, (RuntimeError, OSError)) and bool(_OF_A_LOST_RANK.search(str(exception)))


def _augment(exception: BaseException, first: Failure) -> None:
    setattr(exception, FIRST, str(first))
    exception.args = (f"{first}. What came of it on this rank: {_told(exception)}",)


def _killer_of_children(trainer: L.Trainer) -> Callable[[], None]:
    """Ends the ranks that Lightning has launched from this process; none where something else has launched them."""
    launched_processes(trainer)  # a version of Lightning that keeps them otherwise is named now, not while a run fails

    def kill() -> None:
        for child in launched_processes(trainer):
            child.kill()

    return kill
