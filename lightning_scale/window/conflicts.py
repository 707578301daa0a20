"""What cannot run beside the window and the scaled learning rate, and batches that a loader cannot give.

All of it is found before training starts, but for what only a micro-batch shows.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import LBFGS, Optimizer

from lightning_scale.alias import FLAG
from lightning_scale.data import is_resumable
from lightning_scale.errors import ConfigurationError
from lightning_scale.lightning_internals import LoopAccess
from lightning_scale.schedule import (
    BatchSizeSchedule,
    ConstantBatchSize,
    InsteadOfDecay,
    LastWindow,
    Quantity,
    StagePlan,
    micro_batches_for,
)
from lightning_scale.window.learning_rate import RateRule
from lightning_scale.window.mean_gradient import users_own


def refuse_batch_conflicts(trainer: L.Trainer, module: L.LightningModule, owner: str, accumulate: int) -> None:
    """Raises ConfigurationError for anything else that decides when Lightning steps; ``accumulate`` is the Trainer's own."""
    if accumulate != 1:
        raise ConfigurationError(
            f"{owner} sets the batch size, but trainer.accumulate_grad_batches is {accumulate}:"
            " leave accumulate_grad_batches out, the number of micro-batches follows from the batch size."
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            raise ConfigurationError(
                f"{owner} and GradientAccumulationScheduler both set the batch size: remove"
                " GradientAccumulationScheduler."
            )
    _refuse_weight_averaging(trainer, f"accumulation, which {owner} sets")
    refuse_manual_optimization(module, owner)


def refuse_two_gradients(owner: str, optimizer: Optimizer, seen: bool = False) -> None:
    """Raises ConfigurationError for an optimizer that computes gradients itself: of one micro-batch, not of the window.

    Args:
        owner: The callback that owns the batch size, for the message.
        optimizer: The optimizer that the user configured; those with SAM's two steps are refused.
        seen: Whether it has been seen to do so.
    """
    two_steps = all(callable(getattr(optimizer, name, None)) for name in ("first_step", "second_step"))
    if seen or two_steps or isinstance(optimizer, LBFGS):
        raise ConfigurationError(
            f"{type(optimizer).__name__} computes gradients inside of its step, as SAM and LBFGS do, and would see only the last"
            f" of a batch's micro-batches: let {owner}'s batch be one micro-batch of each rank, or use an optimizer that steps"
            " on the gradients that are there."
        )


def refuse_static_graph(trainer: L.Trainer, owner: str) -> None:
    """Raises ConfigurationError for DDP's ``static_graph``, beside steps of several micro-batches: torch fails inside of it."""
    if getattr(trainer.model, "static_graph", False):
        raise ConfigurationError(
            f"static_graph=True and {owner}'s steps of several micro-batches: DDP takes its first backward pass for all of them,"
            " and in a step's first ones gradients are not exchanged. Leave static_graph out of DDPStrategy."
        )


def refuse_finders(trainer: L.Trainer, loop: LoopAccess, who: str) -> None:
    """Raises ConfigurationError beside Lightning's tuners, which take all other callbacks away while they measure."""
    callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]
    loop.leave_out_tuners()
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder):
            raise ConfigurationError(
                f"lr_find (LearningRateFinder) steps after every micro-batch and at rates of its own, without {who}: what it"
                " finds holds for another batch. Compare short fits at several rates instead, for LEGWWarmup at the batch that"
                " base_batch_size names."
            )
        if isinstance(callback, BatchSizeFinder):
            raise ConfigurationError(
                f"scale_batch_size (BatchSizeFinder) changes the micro-batch without {who}, which makes the batch of"
                " micro-batches: lightning-scale plan says the largest micro-batch that fits; write that into the loader."
            )


def refuse_fetching_steps(module: L.LightningModule, who: str) -> None:
    """Raises ConfigurationError for a module that fetches its micro-batches itself."""
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ConfigurationError(
            f"{type(module).__name__}.training_step takes dataloader_iter and fetches micro-batches itself, which {who} then"
            " cannot count: write training_step(self, batch, batch_idx)."
        )


def _refuse_weight_averaging(trainer: L.Trainer, what: str) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            raise ConfigurationError(
                f"StochasticWeightAveraging takes over {what}: remove it, or average the weights with lightning's"
                " WeightAveraging."
            )


def refuse_manual_optimization(module: L.LightningModule, who: str) -> None:
    """Raises ConfigurationError for a module that steps its optimizer itself."""
    if not module.automatic_optimization:
        raise ConfigurationError(
            f"{who} needs automatic optimization, but {type(module).__name__} sets automatic_optimization = False:"
            " let training_step return the loss instead."
        )


def refuse_rate_conflicts(trainer: L.Trainer, rule: RateRule, schedule: BatchSizeSchedule | None) -> None:
    """Raises ConfigurationError for anything else that sets the rate; warns of a rule that will not be used."""
    if len(trainer.optimizers) != 1:
        raise ConfigurationError(
            f"learning-rate scaling takes one optimizer, and configure_optimizers returned {len(trainer.optimizers)}:"
            " return one optimizer with a parameter group for each part."
        )
    _refuse_weight_averaging(trainer, f"the learning rate that {' and '.join(rule.sources)} set")
    plan, legw = rule.plan, rule.legw
    if legw is not None and rule.batch_factor is not None:
        raise ConfigurationError(
            "BatchSizeRamp's lr_scaling and LEGWWarmup both make the rate follow the batch: write lr_scaling: none in"
            " BatchSizeRamp, or remove LEGWWarmup."
        )
    grown = [stage.schedule for stage in plan.stages if stage.lr is None] if plan is not None else [schedule]
    if legw is not None and legw.lr_scaling != "none" and any(isinstance(s, InsteadOfDecay) for s in grown):
        raise ConfigurationError(
            "InsteadOfDecay grows the batch in place of decaying the rate, and LEGWWarmup raises the rate with the batch:"
            " write lr_scaling: none in LEGWWarmup."
        )
    if plan is None:
        return
    scheduled = bool(trainer.lr_scheduler_configs)
    for number, stage in enumerate(plan.stages, 1):
        if scheduled and stage.lr is not None:
            raise ConfigurationError(
                f"stage {number} sets lr={stage.lr} and there is a learning-rate scheduler: remove the scheduler, or the"
                " stage's lr."
            )
        if scheduled and stage.decay != "constant":
            raise ConfigurationError(
                f"stage {number} decays the rate ({stage.decay}) and so does a learning-rate scheduler: remove the"
                " scheduler, or write decay: constant in the stage."
            )
    if legw is not None and all(stage.lr is not None for stage in plan.stages):
        rank_zero_warn("LEGWWarmup is not used, for every stage sets its own lr: remove LEGWWarmup, or a stage's lr.")
    elif legw is not None and Quantity.parse(legw.base_warmup).value:
        for number, stage in enumerate(plan.stages, 1):
            if stage.lr is not None and not Quantity.parse(stage.warmup).value:
                rank_zero_warn(
                    f"stage {number} sets its own lr, so LEGWWarmup's warmup is not used in it, and it begins at its peak"
                    " rate: give the stage a warmup, or leave its lr out."
                )


def refuse_tokens_without_stages(interval: Quantity | None, plan: StagePlan | None) -> None:
    """Raises ConfigurationError for an interval in tokens where nothing says how many a sample has."""
    if interval is not None and interval.unit == "tokens" and plan is None:
        raise ConfigurationError(
            f'ValidateEvery: "{interval}" needs SequenceLengthStages, which say how many tokens a sample has; write the'
            " interval in samples."
        )


def warn_of_loaders_that_cannot_continue(loaders: list[Any], *, resuming: bool, exact: bool) -> None:
    """Say what to use where a loader begins an epoch anew after a resume inside it.

    Args:
        loaders: The training loaders.
        resuming: Whether the run now goes on inside an epoch.
        exact: Whether the user asked for exact resumes.
    """
    if resuming:  # Lightning asks every loader for a state_dict, which one that counts samples does without
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    advice = "use lightning_scale.data.ResumableBatchSampler, or a loader with state_dict and load_state_dict."
    for loader in loaders:
        stateful = all(hasattr(loader, name) for name in ("state_dict", "load_state_dict"))
        if stateful or is_resumable(loader):
            continue
        if resuming:
            rank_zero_warn(
                f"the run goes on inside an epoch, and its {type(loader).__name__} begins that epoch anew: samples are"
                f" trained on twice, and others not at all. For the next run {advice}"
            )
        elif exact:
            rank_zero_warn(
                f"ExactResume: the {type(loader).__name__} cannot continue inside an epoch, so that only a checkpoint at"
                f" an epoch's end resumes exactly: {advice}"
            )


def refuse_two_clips(trainer: L.Trainer) -> None:
    """Raises ConfigurationError where the Trainer and the optimizer would both clip by the global norm."""
    for optimizer in trainer.optimizers:
        limit = getattr(users_own(optimizer), "max_grad_norm", None)
        if limit is not None and trainer.gradient_clip_val:
            raise ConfigurationError(
                f"the optimizer clips gradients to max_grad_norm={limit} and the Trainer to"
                f" gradient_clip_val={trainer.gradient_clip_val}: keep one of the two."
            )


def refuse_other_namespace(trainer: Any) -> None:
    """Raises ConfigurationError for objects of ``pytorch_lightning``, whose classes are others than the same names here."""
    parts = [trainer, *trainer.callbacks, trainer.lightning_module, getattr(trainer, "datamodule", None)]
    for part in parts:
        kinds = {cls.__module__.split(".")[0] for cls in type(part).__mro__}
        if "pytorch_lightning" in kinds:
            raise ConfigurationError(
                f"{type(part).__name__} is built on pytorch_lightning, whose classes are not those of lightning.pytorch:"
                " write `import lightning.pytorch as L` in place of `import pytorch_lightning`; for a package that is not yours,"
                " call lightning_scale.alias.alias_pytorch_lightning() before it is imported, or give the command"
                f" {FLAG}."
            )


def refuse_unknown_samples(loaders: list[Any], schedule: BatchSizeSchedule | None) -> None:
    """Raises ConfigurationError where the samples consumed decide what comes next, and a checkpoint does not say them."""
    follows = [
        what
        for what, does in (
            ("the ResumableBatchSampler's order", any(is_resumable(loader) for loader in loaders)),
            ("the batch size", schedule is not None and len(schedule.changes()) > 1),
        )
        if does
    ]
    if follows:
        raise ConfigurationError(
            f"the checkpoint was written without lightning_scale's callbacks and does not say how many samples were"
            f" consumed, which {' and '.join(follows)} follows from: resume with the callbacks that it was written with, or"
            " start a new run from its weights."
        )


def refuse_missing_micro_batch(owner: str) -> None:
    """Raises ConfigurationError for a micro-batch that is None: Lightning skips it, and the batch would lack its samples."""
    raise ConfigurationError(
        f"the training loader gave None in place of a micro-batch, and {owner} needs each of them to fill the batch: filter"
        " samples in the data set, or let collate_fn return what is left."
    )


def refuse_scaled_step_without_loss(trainer: L.Trainer) -> None:
    """Raises ConfigurationError where Lightning would leave a window's step out for its last micro-batch has no loss."""
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ConfigurationError(
            "training_step returned None for the last micro-batch of a step, and with a gradient scaler Lightning then"
            " leaves the whole step out: return a loss of 0 with num_items 0 instead."
        )


def warn_of_window_cut_off(has_gradient: bool) -> None:
    """Say that an epoch has ended inside a step in a way that nobody could foresee."""
    if has_gradient:
        rank_zero_warn(
            "an epoch ended inside a step, which is left out: its loader gave fewer micro-batches than its length says, or"
            " on_train_batch_start returned -1."
        )


def refuse_uneven_ranks(lengths: list[float]) -> None:
    """Raises ConfigurationError, on all ranks, where their loaders have different numbers of micro-batches in an epoch."""
    least, most = min(lengths), max(lengths)
    if least != most:
        raise ConfigurationError(
            f"rank {lengths.index(least)} would run out of data: its training loader gives {least:g} micro-batches in an epoch,"
            f" and rank {lengths.index(most)}'s {most:g}, which would wait for it. Give all ranks as many (a"
            " ResumableBatchSampler or a DistributedSampler does), or write limit_train_batches."
        )


def refuse_impossible_sizes(
    schedule: BatchSizeSchedule,
    owner: str,
    micro_batch_size: int,
    world_size: int,
    *,
    exact: bool,
    possible: Callable[[int], int],
) -> None:
    """Refuse sizes that cannot be made of micro-batches, and say of those that are rounded.

    Args:
        schedule: The batch sizes that are asked for.
        owner: The callback that asks for them, for messages.
        micro_batch_size: Samples in one rank's micro-batch, at most.
        world_size: Number of ranks.
        exact: Whether the loader makes smaller micro-batches where they are needed.
        possible: The nearest size that the loader can give.

    Raises:
        ConfigurationError: for a fixed size that full micro-batches do not make up, and sizes that are too small.
    """
    if isinstance(schedule, ConstantBatchSize):
        try:
            micro_batches_for(schedule.size, micro_batch_size, world_size)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
    sizes = [size for _, size in schedule.changes()]
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    least = world_size if exact else world_size * micro_batch_size
    if min(sizes) < least:
        needed = "one sample" if exact else f"one micro-batch of {micro_batch_size}"
        advice = "fewer ranks" if exact else "smaller micro-batches, fewer ranks, a ResumableBatchSampler"
        raise ConfigurationError(
            f"{owner} asks for a batch of {min(sizes)} samples, fewer than {needed} on each of {ranks}: use {advice}, or"
            f" sizes of at least {least}."
        )
    rounded = [size for size in sizes if possible(size) != size]
    if rounded:
        rank_zero_warn(
            f"{len(rounded)} of the {len(sizes)} batch sizes of {owner} cannot be made of"
            f" {'' if exact else 'full '}micro-batches of {micro_batch_size} on {ranks} and are rounded to the nearest"
            f" that can ({rounded[0]} to {possible(rounded[0])}, for example); the sizes logged are the true ones."
            + ("" if exact else " lightning_scale.data.ResumableBatchSampler gives them exactly.")
        )


def refuse_batch_beyond_epoch(batch_size: int, epoch_samples: float, last_window: LastWindow) -> None:
    """A batch larger than an epoch: an error where it would never be stepped on, else a warning."""
    if epoch_samples >= batch_size:
        return
    said = f"a batch of {batch_size} samples is larger than an epoch, which has {epoch_samples:.0f}"
    if last_window == "drop":
        raise ConfigurationError(
            f'{said}, which last_window="drop" leaves out, so that no step would ever be taken: use a smaller batch_size,'
            " or more data."
        )
    rank_zero_warn(f"{said}: steps will be on fewer samples than asked. Use a smaller batch_size, or more data.")
