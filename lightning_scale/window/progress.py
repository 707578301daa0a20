"""What a run has consumed: part of checkpoints, and what batch sizes and rates are functions of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_scale.schedule import Quantity
from lightning_scale.window.stages import StageFollower


@dataclass
class Progress:
    """Samples and tokens of all ranks that the windows so far have consumed, also those of skipped steps."""

    samples: int = 0
    """Over the whole run."""
    tokens: int = 0
    """Tokens in them, where stages say how long a sample is."""
    epoch_start: int = 0
    """`now`, when Lightning's present epoch began."""
    last: int = 0
    """Samples of the last window."""
    stages: StageFollower | None = None
    """What counts the present stage's own."""

    @property
    def now(self) -> int:
        """Samples consumed, in the present stage where there are stages."""
        return self.stages.samples if self.stages is not None else self.samples

    def add(self, samples: int) -> None:
        """Count a window's samples."""
        self.samples, self.last = self.samples + samples, samples
        if self.stages is not None:
            self.stages.samples += samples
            self.tokens += samples * self.stages.stage.sequence_length

    def passed(self, interval: Quantity, steps: int) -> bool:
        """Whether the last window, after which there were ``steps`` optimizer steps, reached a multiple of ``interval``."""
        if interval.unit == "steps":
            now, before = steps, steps - 1
        elif interval.unit == "samples":
            now, before = self.samples, self.samples - self.last
        else:
            assert self.stages is not None, "checked before training"
            now, before = self.tokens, self.tokens - self.last * self.stages.stage.sequence_length
        return now // interval.value > before // interval.value

    def state_dict(self) -> dict[str, Any]:
        stage = self.stages.state_dict() if self.stages is not None else {}
        return {"samples": self.samples, "tokens": self.tokens, "epoch_start": self.epoch_start, **stage}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples, self.tokens, self.epoch_start = (state_dict[key] for key in ("samples", "tokens", "epoch_start"))
        if self.stages is not None:
            self.stages.load_state_dict(state_dict)
