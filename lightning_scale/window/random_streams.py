"""Random numbers for training steps apart from those for everything else, and the state of one process's generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_scale.one_run import OfOneRun


@dataclass(frozen=True, eq=False)
class RandomState:
    """Of Python's, NumPy's and torch's (``cpu``) global generators, and of one CUDA device's."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        """The present state; ``device`` is the process's own."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state(), cuda)  # type: ignore[arg-type]

    def restore(self, device: torch.device) -> None:
        """Set all generators to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.cuda, device)

    def seed_another(self) -> None:
        """Seed all generators with a digest of this state, so that they draw other numbers than it would."""
        digest = hashlib.sha256(self.cpu.numpy().tobytes()).digest()
        random.seed(digest)
        np.random.seed(np.frombuffer(digest, dtype=np.uint32))
        torch.manual_seed(int.from_bytes(digest[:7], "big"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState) or (self.cuda is None) != (other.cuda is None):
            return False
        name, keys, *rest = self.numpy
        other_name, other_keys, *other_rest = other.numpy
        return (
            self.python == other.python
            and (name, rest) == (other_name, other_rest)
            and bool((keys == other_keys).all())
            and torch.equal(self.cpu, other.cpu)
            and (self.cuda is None or other.cuda is None or torch.equal(self.cuda, other.cuda))
        )

    __hash__ = None  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts, which ``torch.load(weights_only=True)`` reads."""
        version, words, gauss = self.python
        name, keys, *rest = self.numpy
        return {
            "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": self.cpu,
            "cuda": self.cuda,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RandomState:
        """What `state_dict` gave."""
        version, words, gauss = state["python"]
        name, keys, *rest = state["numpy"]
        python = (version, tuple(words.tolist()), gauss)
        return cls(python, (name, keys.cpu().numpy().astype(np.uint32), *rest), state["torch"].cpu(), state["cuda"])


class RandomStreams(OfOneRun):
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
