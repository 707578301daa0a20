"""The state of one process's random number generators."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
