"""Random numbers for training steps apart from those for everything else."""

from __future__ import annotations

from collections.abc import Callable

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
        self._outside: RandomState | None = None  # while the training stream is drawn from
        self.go_on_from(state if state is not None else RandomState.capture(device))

    def go_on_from(self, state: RandomState) -> None:
        """Let the training stream be at ``state``, between two steps, and the outside stream at another that follows from it."""
        self.kept = state
        """Where the training stream stood at the last step's end: what a checkpoint holds, also inside a window."""
        self._next = self.kept  # where the next micro-batch goes on
        self.kept.seed_another()

    def begin_micro_batch(self) -> None:
        """Draw from the training stream, from where the last micro-batch left it."""
        self._outside = RandomState.capture(self._device)
        self._next.restore(self._device)

    def end_micro_batch(self, *, window_ends: bool) -> None:
        """Draw from the outside stream again; at a window's end the training stream is kept as it stands."""
        if self._outside is not None:
            self._next = RandomState.capture(self._device)
            self.leave()
        if window_ends:
            self.kept = self._next

    def leave(self) -> None:
        """Draw from the outside stream again, where the training stream has not been left yet: draws in it are undone."""
        if self._outside is not None:
            self._outside.restore(self._device)
            self._outside = None

    def run_outside(self, run: Callable[[], None]) -> None:
        """Let ``run`` draw from the outside stream, also where the training stream is drawn from around it."""
        training = RandomState.capture(self._device) if self._outside is not None else None
        self.leave()
        run()
        if training is not None:
            self._outside = RandomState.capture(self._device)
            training.restore(self._device)

    def begin_epoch(self, iterate: Callable[[], None]) -> None:
        """Let ``iterate`` draw from the training stream, from the last step's end; the next step goes on from there."""
        outside = RandomState.capture(self._device)
        self.kept.restore(self._device)
        try:
            iterate()
            after = RandomState.capture(self._device)
            if after != self.kept:  # it draws in one of the two places where Lightning makes an epoch's iterators
                self._next = after
        finally:
            outside.restore(self._device)
