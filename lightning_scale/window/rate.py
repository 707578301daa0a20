"""The one writer of scaled learning rates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.schedule import Rate


class RateControl:
    """Keeps an optimizer's groups at base × factor, where base is what the user's optimizer or scheduler says.

    Schedulers and checkpoints see the base only (`unscaled`), so that a scheduler that computes the next rate from the
    present one does not compound the factor, and a resumed run starts from the same bits.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._base: list[float | Tensor] = []
        self._written: list[float | None] = []
        self._rate = Rate(absolute=None, factor=1.0)
        # A stage's absolute rate is that of a group at the optimizer's default; other groups keep their proportion.
        # Taken from the configuration, before a checkpoint brings the rates of another one.
        self._default = float(optimizer.defaults.get("lr") or 0.0)
        self._proportion = [self._proportion_of(group) for group in optimizer.param_groups]

    def _proportion_of(self, group: dict[str, Any]) -> float:
        return float(group["lr"]) / self._default if self._default else 1.0

    def take_base(self) -> None:
        """Read every group's base, after a checkpoint has been restored and before the first `write`."""
        self._base = [_copy(group["lr"]) for group in self._optimizer.param_groups]
        self._written = [None] * len(self._base)

    def _adopt_new_groups(self) -> None:
        """Groups added during training come with their base."""
        for group in self._optimizer.param_groups[len(self._base) :]:
            self._base.append(_copy(group["lr"]))
            self._written.append(None)
        for group in self._optimizer.param_groups[len(self._proportion) :]:
            self._proportion.append(self._proportion_of(group))

    def write(self, rate: Rate) -> None:
        """Set every group's rate for the next optimizer step."""
        self._adopt_new_groups()
        self._rate = rate
        for i, group in enumerate(self._optimizer.param_groups):
            peak = self._base[i] if rate.absolute is None else rate.absolute * self._proportion[i]
            value = peak * rate.factor
            _set(group, value)
            self._written[i] = None if isinstance(value, Tensor) else float(value)

    @property
    def first(self) -> float | Tensor:
        """The first group's rate as it stands (a copy)."""
        return _copy(self._optimizer.param_groups[0]["lr"])

    def restore(self) -> None:
        """Set every group's rate to its base."""
        self._adopt_new_groups()
        for group, base, written in zip(self._optimizer.param_groups, self._base, self._written, strict=True):
            now = group["lr"]
            if written is not None and not isinstance(now, Tensor) and now != written:
                rank_zero_warn(
                    f"the learning rate was set to {now} by something else than lightning_scale's callbacks, which set"
                    f" it to {written}: the change is undone. Change the optimizer's lr, or use a torch scheduler."
                )
            _set(group, base)

    @contextmanager
    def unscaled(self) -> Iterator[None]:
        """Within, groups hold their base; what is there at the end becomes the new base."""
        self.restore()
        try:
            yield
        finally:
            self._base = [_copy(group["lr"]) for group in self._optimizer.param_groups]
            self.write(self._rate)


def _copy(lr: float | Tensor) -> float | Tensor:
    return lr.detach().clone() if isinstance(lr, Tensor) else float(lr)


def _set(group: dict[str, Any], value: float | Tensor) -> None:
    """Write into a tensor in place (a compiled or captured step reads it), else replace the number."""
    if not isinstance(group["lr"], Tensor):
        group["lr"] = float(value)
    elif isinstance(value, Tensor):
        group["lr"].copy_(value)
    else:
        with torch.no_grad():
            group["lr"].fill_(value)
