"""A fit whose training loop counts steps instead of taking them.

All that comes before the first step is Lightning's own `fit`, on a model without memory: the same callbacks are set up, the
same loaders read, the same configurations refused. Then every step is asked of the same window and rate as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, StochasticWeightAveraging
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
from lightning_scale.plan.director import Director, Fed
from lightning_scale.plan.elsewhere import Elsewhere
from lightning_scale.plan.quiet import Quiet
from lightning_scale.plan.steps import Schedule

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
"""The Trainer's options that steps follow from."""

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
class Rehearsed:
    """What a rehearsal has found."""

    schedule: Schedule
    model: L.LightningModule
    optimizers: list[Optimizer] = field(default_factory=list)
    fed: list[Fed] = field(default_factory=list)


def rehearse(
    model: L.LightningModule,
    datamodule: L.LightningDataModule | None,
    callbacks: Sequence[L.Callback],
    options: dict[str, Any],
    world_size: int,
    read_samples: bool = False,
) -> Rehearsed:
    """The optimizer steps of a run, as `fit` would take them.

    Args:
        model: The module; its parameters need no memory (``torch.device("meta")``), and its ``configure_model`` gets none.
        datamodule: The data; its loaders are made.
        callbacks: The Trainer's; those that have no say in steps are left out.
        options: The Trainer's options; those in `OPTIONS` are used.
        world_size: Number of ranks.
        read_samples: Read a few samples of each stage, so that micro-batches are known.

    Raises:
        ConfigurationError: where `fit` would refuse to run, or nothing says where it ends.
    """
    _refuse_repeated(callbacks)
    heard = [callback for callback in callbacks if isinstance(callback, _HEARD)]
    director = Director(heard, read_samples)
    with TemporaryDirectory() as folder, ranks.as_if(world_size), Quiet() as said:
        trainer = L.Trainer(
            **{key: value for key, value in options.items() if key in OPTIONS},
            callbacks=[*heard, director],
            strategy=Elsewhere(world_size),
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
    return Rehearsed(director.schedule(tuple(notes)), model, director.optimizers, director.fed)


def _refuse_repeated(callbacks: Sequence[L.Callback]) -> None:
    """What a Trainer with all of the callbacks would refuse: two of one kind, with a state under one name."""
    seen: set[str] = set()
    for callback in callbacks:
        if is_overridden("state_dict", instance=callback):
            if callback.state_key in seen:
                raise ConfigurationError(two_callbacks(type(callback).__name__))
            seen.add(callback.state_key)
