"""The scaled learning rate of one fit: the rule, and the one writer that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.schedule import BatchSizeSchedule
from lightning_scale.window.rate import RateControl
from lightning_scale.window.rate_rule import RateRule


class ScaledRate:
    """Sets the optimizer's rates by a rule, between `begin` and `end`; nothing where the rule has nothing to say."""

    def __init__(self) -> None:
        self.rule = RateRule()
        self.last: float | Tensor = 0.0
        """The first parameter group's rate in the last step."""
        self._prepared: RateControl | None = None
        self._control: RateControl | None = None  # while training

    def prepare(self, optimizer: Optimizer) -> None:
        """Before a checkpoint brings other rates."""
        self._prepared = RateControl(optimizer)

    def begin(self) -> None:
        """Training begins, from the rates that the optimizer has now."""
        if self._prepared is not None:
            self._prepared.take_base()
            self._control = self._prepared

    def write(self, step: int, samples: int, batch_size: int | None, schedule: BatchSizeSchedule | None) -> None:
        """Set the rate of the optimizer step after ``step``; see `RateRule.rate`."""
        if self._control is not None:
            self._control.write(self.rule.rate(step, samples, batch_size, schedule))

    def note(self) -> None:
        """The optimizer is about to step: remember its rate."""
        if self._control is not None:
            self.last = self._control.first

    def unscaled(self) -> AbstractContextManager[None]:
        """Within, the optimizer has the user's own rates."""
        return self._control.unscaled() if self._control is not None else nullcontext()

    def update_schedulers(self, update: Callable[[], None]) -> None:
        """Run an update of torch schedulers on the user's own rates."""
        with self.unscaled():
            update()

    def end(self) -> None:
        """Give the user's own rates back."""
        if self._control is not None:
            self._control.restore()
            self._control = None
