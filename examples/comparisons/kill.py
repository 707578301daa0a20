"""An end that nothing can prepare for."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning.pytorch as L


class KillInStep(L.Callback):
    """Ends the process by SIGKILL before the gradient of a step is whole.

    Args:
        step: The optimizer step, from 1.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)
