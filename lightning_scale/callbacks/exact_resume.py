"""The random numbers of a resumed run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_scale.window import LoopAdapter, RandomState, RandomStreams


class ExactResume(L.Callback):
    """A resumed run draws the random numbers that the uninterrupted run would have drawn (Lightning saves none).

    Checkpoints hold the state of every rank's generators (Python's, NumPy's, torch's and the rank's CUDA device's) at the
    last optimizer step's end. Training steps draw from a stream of their own: validation, other callbacks and whatever
    else runs between two steps leave it alone, so that it does not matter what ran between a checkpoint and the next step.

    With `lightning_scale.data.ResumableBatchSampler` a resume anywhere in an epoch has the bits of the uninterrupted run;
    with a plain DataLoader only a resume at an epoch's start has. What a data set draws in worker processes is not
    covered: draw it from the sample's position (``ResumableBatchSampler(positions=True)``). A hook that seeds generators
    between two steps seeds the outside stream.
    """

    def __init__(self) -> None:
        self._states: dict[int, RandomState] = {}  # of a checkpoint, by rank
        self._streams: RandomStreams | None = None
        self._trainer: L.Trainer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trainer": None}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._trainer, self._states, self._streams = trainer, {}, None
            LoopAdapter.attach(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._streams = RandomStreams(trainer.strategy.root_device, self._loaded(trainer))
        LoopAdapter.attach(trainer).draw_from(self._streams)

    def _loaded(self, trainer: L.Trainer) -> RandomState | None:
        """This rank's state in the checkpoint; None where nothing was loaded, or not for this rank."""
        state = self._states.get(trainer.global_rank)
        if self._states and (state is None or len(self._states) != trainer.world_size):
            rank_zero_warn(
                f"the checkpoint holds the random states of ranks {sorted(self._states)} and there are"
                f" {trainer.world_size} ranks now: random numbers will not be those of the uninterrupted run."
            )
        return state

    def state_dict(self) -> dict[str, Any]:
        if self._streams is None or self._trainer is None:
            return {}
        own = self._streams.kept.state_dict()
        states = {self._trainer.global_rank: own}
        # On an error the other ranks may not be here to answer.
        if self._trainer.world_size > 1 and not self._trainer.interrupted:
            gathered: list[Any] = [None] * self._trainer.world_size
            torch.distributed.all_gather_object(gathered, own)
            states = dict(enumerate(gathered))
        return {"random_states": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict.get("random_states", {})
        self._states = {int(rank): RandomState.from_state_dict(state) for rank, state in states.items()}
        # Where parameters are sharded, Lightning loads after on_fit_start.
        if self._streams is not None and self._trainer is not None:
            state = self._loaded(self._trainer)
            if state is not None:
                self._streams.go_on_from(state)
