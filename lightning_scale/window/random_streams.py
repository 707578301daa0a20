"""Random numbers for training steps apart from those for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lightning_scale.window.random_state import RandomState


class RandomStreams:
    """One process's training stream and its outside stream; what draws in one does not move the other.

    Training steps (fetching, forward and backward pass) draw from the training stream, which a checkpoint can hold and a
    resumed run go on with. Validation, callbacks between two steps and whatever else draws from the outside stream, so
    that a run which validated and one which did not train on the same numbers.

    Args:
        device: The process's device.
        state: The training stream's, from a checkpoint; None for the generators' present state.
    """

    def __init__(self, device: torch.device, state: RandomState | None = None) -> None:
        self._device = device
        self.kept = state if state is not None else RandomState.capture(device)
        """Where the training stream stood at the last step's end: what a checkpoint holds, also inside a window."""
        self._next = self.kept  # the same, or further on where an epoch's loaders have drawn since
        self._outside: RandomState | None = None  # while the training stream is drawn from
        self.kept.seed_another()

    def begin_window(self) -> None:
        """Draw from the training stream, from where the last step left it."""
        if self._outside is None:
            self._outside = RandomState.capture(self._device)
            self._next.restore(self._device)

    def end_window(self) -> None:
        """Draw from the outside stream again."""
        if self._outside is not None:
            self.kept = self._next = RandomState.capture(self._device)
        self.give_up_window()

    def give_up_window(self) -> None:
        """As `end_window`, for a window that will be taken again: the training stream goes back to its start."""
        if self._outside is not None:
            self._outside.restore(self._device)
            self._outside = None

    def begin_epoch(self, iterate: Callable[[], None]) -> None:
        """Let ``iterate`` draw from the training stream, from the last step's end; the next step goes on from there."""
        self.give_up_window()
        outside = RandomState.capture(self._device)
        self.kept.restore(self._device)
        try:
            iterate()
            after = RandomState.capture(self._device)
            if after != self.kept:  # Lightning makes an epoch's iterators in one of two places
                self._next = after
        finally:
            outside.restore(self._device)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Within, draw from the outside stream (for a validation inside a window)."""
        if self._outside is None:
            yield
            return
        training = RandomState.capture(self._device)
        self._outside.restore(self._device)
        try:
            yield
        finally:
            self._outside = RandomState.capture(self._device)
            training.restore(self._device)
