"""The process that a Trainer runs in: its signal handlers, and the processes that it has launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.strategies import launchers

from lightning_scale.lightning_internals import names


def after_lightnings_handlers(trainer: L.Trainer, register: Callable[[], None]) -> None:
    """Call ``register()`` once, as soon as the present ``fit`` has put Lightning's handlers in place.

    That is before data are loaded and before the first hook of training. When it ends, Lightning puts back the handlers
    that were there before ``fit``.

    Raises:
        RuntimeError: where this version of Lightning lacks a part that is relied on; it names the version.
    """
    names.check(names.TRAINER, trainer)
    connector: Any = trainer._signal_connector

    def register_signal_handlers() -> None:
        del connector.register_signal_handlers  # the class's own again
        connector.register_signal_handlers()
        register()

    connector.register_signal_handlers = register_signal_handlers


def launched_processes(trainer: L.Trainer) -> list[Any]:
    """The ranks that Lightning has launched from this process; none where something else has launched them.

    Raises:
        RuntimeError: where this version of Lightning lacks a part that is relied on; it names the version.
    """
    launcher: Any = trainer.strategy.launcher
    for kind, owner in (
        (launchers._SubprocessScriptLauncher, names.SCRIPT_LAUNCHER),
        (launchers._MultiProcessingLauncher, names.FORKING_LAUNCHER),
    ):
        if isinstance(launcher, kind):
            names.check(owner, launcher)
    return list(getattr(launcher, "procs", ()))
