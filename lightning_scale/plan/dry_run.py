"""Runs Lightning's `fit` with a training loop that counts steps instead of taking them.

All that comes before the first step is Lightning's own `fit`, on a model without memory: the same callbacks are set up, the
same loaders read, the same configurations refused. Then every step is asked of the same window and rate as in training.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from lightning_scale.callbacks import (
    BatchSizeRamp,
    GradientAccumulation,
    LEGWWarmup,
    SequenceLengthStages,
    ValidateEvery,
)
from lightning_scale.data import ranks
from lightning_scale.errors import ConfigurationError, two_callbacks
from lightning_scale.plan.schedule import Schedule
from lightning_scale.plan.step_counter import StageInput, StepCounter

OPTIONS = (
    "max_steps",
    "max_epochs",
    "min_steps",
    "min_epochs",
    "limit_train_batches",
    "overfit_batches",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "use_distributed_sampler",
    "reload_dataloaders_every_n_epochs",
    "val_check_interval",
    "check_val_every_n_epoch",
)
"""The Trainer's options that decide about steps."""

_PACKAGE = str(Path(__file__).parents[1])
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")

# Callbacks that decide about steps and rates, or refuse to run beside those.
_HEARD = (
    BatchSizeRamp,
    GradientAccumulation,
    LEGWWarmup,
    SequenceLengthStages,
    ValidateEvery,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)


@dataclass
class DryRun:
    """What a dry run has found: the steps, the module as `fit` set it up, its optimizers and what each stage trains on."""

    schedule: Schedule
    model: L.LightningModule
    optimizers: list[Optimizer] = field(default_factory=list)
    inputs: list[StageInput] = field(default_factory=list)


def dry_run(
    model: L.LightningModule,
    datamodule: L.LightningDataModule | None,
    callbacks: Sequence[L.Callback],
    options: dict[str, Any],
    world_size: int,
    read_samples: bool = False,
) -> DryRun:
    """Find the optimizer steps of a run, as `fit` would take them.

    Args:
        model: The module; its parameters need no memory (``torch.device("meta")``), and its ``configure_model`` gets none.
        datamodule: The data, whose loaders are made; None where the module has its own.
        callbacks: The Trainer's callbacks; those that have no say in steps are left out.
        options: The Trainer's options; those in `OPTIONS` are used.
        world_size: The number of ranks.
        read_samples: Whether to read a few samples of each stage, so that the shapes of micro-batches are known.

    Raises:
        ConfigurationError: where `fit` would refuse to run, or nothing says where it ends.
    """
    _refuse_repeated(callbacks)
    heard = [callback for callback in callbacks if isinstance(callback, _HEARD)]
    counter = StepCounter(heard, read_samples)
    with TemporaryDirectory() as folder, ranks.as_if(world_size), _OwnWarningsOnly() as said:
        trainer = L.Trainer(
            **{key: value for key, value in options.items() if key in OPTIONS},
            callbacks=[*heard, counter],
            strategy=MetaStrategy(world_size),
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(model, datamodule=datamodule)
    notes = list(dict.fromkeys(said))
    if any(isinstance(callback, EarlyStopping) for callback in callbacks):
        notes.append("EarlyStopping may end the run before this plan does.")
    return DryRun(counter.schedule(tuple(notes)), model, counter.optimizers, counter.inputs)


def _refuse_repeated(callbacks: Sequence[L.Callback]) -> None:
    """Refuse what a Trainer with all of the callbacks would: two of one kind, whose states have one name."""
    seen: set[str] = set()
    for callback in callbacks:
        if is_overridden("state_dict", instance=callback):
            if callback.state_key in seen:
                raise ConfigurationError(two_callbacks(type(callback).__name__))
            seen.add(callback.state_key)


class MetaStrategy(ParallelStrategy):
    """Stands for rank 0 of any number of ranks and trains nothing: its model has shapes and no memory.

    Args:
        ranks: The number of ranks that callbacks and loaders are told.
    """

    strategy_name = "lightning_scale_plan"

    def __init__(self, ranks: int) -> None:
        super().__init__(parallel_devices=[torch.device("cpu")])
        self._ranks = ranks

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def world_size(self) -> int:
        return self._ranks

    @property
    def is_distributed(self) -> bool:
        """Whether Lightning gives plain loaders a distributed sampler."""
        return self._ranks > 1

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self._ranks, "rank": 0}

    def model_to_device(self) -> None:
        """Leave the model without memory."""

    def teardown(self) -> None:
        """Do nothing, for there is nothing to bring back from a device."""

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Within, what a module's ``configure_model`` builds takes no memory."""
        with torch.device("meta"):
            yield

    def process_dataloader(self, dataloader: object) -> object:
        return _UnreadLoader(dataloader)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def all_reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def all_gather(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for nobody."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        yield


class _UnreadLoader:
    """Answers as the loader that it wraps, but gives no samples, so that no file is opened and no worker started."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)


class _OwnWarningsOnly:
    """Within, Lightning prints nothing, and only the warnings of this package are kept, as a list of sentences."""

    def __enter__(self) -> list[str]:
        self._said: list[str] = []
        self._caught = warnings.catch_warnings(record=True)
        self._records = self._caught.__enter__()
        warnings.simplefilter("always")
        self._levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
        for logger, _ in self._levels:
            logger.setLevel(logging.ERROR)
        return self._said

    def __exit__(self, *error: Any) -> None:
        self._said += [str(record.message) for record in self._records or () if record.filename.startswith(_PACKAGE)]
        self._caught.__exit__(*error)
        for logger, level in self._levels:
            logger.setLevel(level)
