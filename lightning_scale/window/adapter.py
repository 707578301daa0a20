"""Makes Lightning's loop follow the window, the stages and the scaled learning rate; every callback asks it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as L
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.data import ResumableBatchSampler
from lightning_scale.errors import ConfigurationError
from lightning_scale.schedule import LEGW
from lightning_scale.window.conflicts import (
    check_epoch_holds,
    refuse_batch_conflicts,
    refuse_manual_optimization,
    refuse_other_namespace,
    refuse_rate_conflicts,
    refuse_two_clips,
)
from lightning_scale.window.epoch import samples_per_epoch
from lightning_scale.window.items import MeanOverItems, items_of, samples_of
from lightning_scale.window.loop import LoopAccess
from lightning_scale.window.owner import BatchSizeOwner
from lightning_scale.window.rate import RateControl
from lightning_scale.window.rate_rule import RateRule
from lightning_scale.window.stages import StageFollower
from lightning_scale.window.window import Window, micro_batches_for


class LoopAdapter(L.Callback):
    """One Trainer's progress, window and learning rate.

    Callbacks of this package find it with `attach` in their ``setup``; it puts itself before all others, so that they
    see the mean gradient and the right rate. Its state (samples and tokens consumed) is part of checkpoints.
    """

    def __init__(self) -> None:
        self.samples = 0
        """Samples of all ranks that the optimizer steps so far have consumed."""
        self.tokens = 0
        """Tokens in them, where stages say how long a sample is."""
        self.batch_size: int | None = None
        """Samples of the window last opened, over all ranks; None where nobody knows."""
        self.lr: float | Tensor = 0.0
        """The first parameter group's rate in the last step, where it is scaled."""
        self.stages: StageFollower | None = None
        self.rate: RateControl | None = None
        """Between ``on_train_start`` and the end of training, where anything scales the rate."""
        self._rates: RateControl | None = None
        self._owner: tuple[str, BatchSizeOwner] | None = None
        self._rule = RateRule()
        self._mean = MeanOverItems()
        self._items = 0.0
        self._micro_batch_size: int | None = None
        self._loop: LoopAccess | None = None
        self._window: Window | None = None
        self._closes = True  # between windows, and so in every checkpoint
        self._stage_samples = 0
        self._epoch_start = 0  # samples consumed when Lightning's present epoch began
        self._loading = False
        self._ran = False

    # -- what callbacks call in their setup ----------------------------------------------------------------------------

    @staticmethod
    def attach(trainer: L.Trainer) -> LoopAdapter:
        """The Trainer's adapter; made, and placed before all other callbacks, where there is none yet."""
        refuse_other_namespace(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LoopAdapter):
                return callback
        adapter = LoopAdapter()
        # A new list: Lightning may be going through the old one.
        trainer.callbacks = [adapter, *trainer.callbacks]  # type: ignore[attr-defined]
        adapter.setup(trainer, trainer.lightning_module, "fit")
        return adapter

    def own_batch_size(self, trainer: L.Trainer, name: str, owner: BatchSizeOwner) -> None:
        """Let ``owner`` say how large each batch is.

        Raises:
            ConfigurationError: where another callback does so already.
        """
        if self._owner is not None and self._owner[1] is not owner:
            raise ConfigurationError(
                f"{self._owner[0]} and {name} both set the batch size: keep one of them"
                " (a stage's batch_size can be a schedule)."
            )
        if self._owner is None:
            self.loop.estimate_steps(lambda: self._micro_batches(trainer, self._next_batch_size(trainer)))
        self._owner = (name, owner)

    def use_legw(self, rule: LEGW) -> None:
        """Scale the optimizer's rate by LEGW's rule.

        Raises:
            ConfigurationError: where there is another LEGW rule already.
        """
        if self._rule.legw is not None and self._rule.legw is not rule:
            raise ConfigurationError("there are two LEGWWarmup callbacks: keep one of them.")
        self._rule.legw = rule

    def follow_stages(self, follower: StageFollower) -> None:
        """Train in stages.

        Raises:
            ConfigurationError: where stages are followed already.
        """
        if self.stages is not None and self.stages is not follower:
            raise ConfigurationError("there are two SequenceLengthStages callbacks: put all stages into one.")
        self.stages = follower
        follower.samples = self._stage_samples  # of an earlier fit, or 0
        self._rule.plan = follower.plan
        self.loop.set_max_steps(follower.plan.total_steps)

    # -- before training -----------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.teardown(trainer, pl_module, stage)  # what a fit that raised has left
            loop = self._loop = LoopAccess(trainer)
            # Already now: configure_optimizers may ask for the loaders, to count steps.
            loop.leave_sampler_alone(self._take_resumable_sampler)
            loop.around_loading_data(lambda: self._before_data(trainer), lambda: self._after_data(trainer))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = self.loop
        refuse_two_clips(trainer)
        if self._owner is not None:
            refuse_batch_conflicts(trainer, pl_module, self._owner[0])
            loop.decide_steps(lambda: self._closes)
            loop.after_training_step(self._see_output)
            loop.zero_grad_only_when(pl_module, self._nothing_to_keep, self._mean.begin)
        if self._rule.active:
            refuse_manual_optimization(pl_module, "LEGWWarmup" if self._rule.plan is None else "SequenceLengthStages")
            refuse_rate_conflicts(trainer, self._rule.plan, self._rule.legw)
            loop.around_schedulers(self._update_schedulers)
            self._rates = RateControl(trainer.optimizers[0])
        loop.around_saving(self._save)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._enter_stage(trainer)  # validation, too, has a stage's length

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ran = True
        if self._rates is not None:
            self._rates.take_base()
            self.rate = self._rates
            self._write_rate(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start = self._samples_now
        for loader in self.loop.train_loaders:
            self._follow(loader)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Left open where a module's on_train_batch_start returned -1, or a loader ended without a word. (Where training
        # is asked to stop, its end gives the window up.)
        if self._window is not None and not trainer.should_stop:
            self._count(self._window, trainer.world_size)
            self._window = None

    # -- a window ------------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._window is None:
            self.batch_size = self._next_batch_size(trainer)
            self._window = Window(self.batch_size or 0, self._micro_batches(trainer, self.batch_size))
            if self.rate is not None:
                self._write_rate(trainer)  # anew, for another callback may have changed the batch since
        self._window.seen += 1
        self._window.samples += samples_of(batch, self._micro_batch_size)
        if self.stages is not None and self._window.full and self.stages.ends_after(trainer.global_step + 1):
            self.loop.end_epoch()
        last_window = self._owner[1].last_window if self._owner is not None else "step"
        self._closes = self._window.closes(epoch_ends=self.loop.epoch_ends, last_window=last_window)

    def _see_output(self, output: Any, batch: Any) -> None:
        """After ``training_step``: how many items its loss is the mean of."""
        self._items = items_of(output, batch, self._micro_batch_size)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if self._owner is not None and self._window is not None:
            self._window.first = self._window.seen if self._window.first is None else self._window.first
            self._mean.weigh(loss, self._items, trainer)

    def _nothing_to_keep(self) -> bool:
        """Before a backward pass: whether no earlier micro-batch of the window has left gradients."""
        return self._window is None or self._window.first in (None, self._window.seen)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        # After AMP's unscale and DDP's sum, before clipping and before any other callback looks at the gradients.
        if self._owner is not None:
            params = (p for group in optimizer.param_groups for p in group["params"])
            self._mean.divide([p.grad for p in params if p.grad is not None], trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._window is None or not (self._closes or self.loop.epoch_ends):
            return
        self._count(self._window, trainer.world_size)
        self._window = None
        if self.rate is not None:
            self.lr = self.rate.first
        if self.rate is not None and not self._stage_over(trainer):
            self._write_rate(trainer)

    def _count(self, window: Window, world_size: int) -> None:
        """Add a window's samples to what has been consumed."""
        consumed = window.samples * world_size
        self.samples += consumed
        if self.stages is not None:
            self.stages.samples += consumed
            self.tokens += consumed * self.stages.stage.sequence_length

    def _next_batch_size(self, trainer: L.Trainer) -> int | None:
        """Samples of the next window over all ranks; None where there is no owner and the loader does not say."""
        if self._owner is not None:
            return self._owner[1].batch_size(trainer.global_step, self._samples_now)
        if self._micro_batch_size is None:
            return None
        return self._micro_batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def _micro_batches(self, trainer: L.Trainer, batch_size: int | None) -> int:
        if self._owner is None or batch_size is None:
            return trainer.accumulate_grad_batches
        assert self._micro_batch_size is not None, "checked when the loader was read"
        return micro_batches_for(batch_size, self._micro_batch_size, trainer.world_size)

    @property
    def _samples_now(self) -> int:
        """Samples consumed, in the present stage where there are stages."""
        return self.stages.samples if self.stages is not None else self.samples

    @property
    def stepped(self) -> bool:
        """In ``on_train_batch_end``: whether the optimizer stepped on this micro-batch."""
        return self._closes and self._window is None

    # -- data ----------------------------------------------------------------------------------------------------------

    def _before_data(self, trainer: L.Trainer) -> None:
        """Before the loop makes sure of its training loaders."""
        self._loading = True
        if trainer.global_step > 0 and not self._ran:
            if self.loop.train_loaders:
                self.loop.drop_loaders()  # made before the checkpoint was restored, for a count of steps
            if self.loop.last_batch_done:
                self._epoch_start = self._samples_now
        self._enter_stage(trainer)

    def _after_data(self, trainer: L.Trainer) -> None:
        self._loading = False
        self._read_loaders(trainer)

    def _enter_stage(self, trainer: L.Trainer) -> None:
        """Before the loop makes sure of its loaders: tell the data of a new stage, and have its loaders made anew."""
        if self.stages is None or not self.stages.changes_at(trainer.global_step):
            return
        if self.stages.serving is not None:
            self.loop.drop_loaders()
        if self.stages.plan.at(trainer.global_step).step == 0 and trainer.global_step > 0:
            self.loop.begin_new_epoch_on_restart()
        self.stages.enter(trainer.global_step, trainer.world_size)

    def _read_loaders(self, trainer: L.Trainer) -> None:
        """After the loop made sure of its loaders: their micro-batch must be one that the batch size can be made of."""
        loaders = self.loop.train_loaders
        if not loaders:
            return
        size = getattr(getattr(loaders[0], "batch_sampler", None), "batch_size", None)
        self._micro_batch_size = size if size is not None else getattr(loaders[0], "batch_size", None)
        wanted = self.stages.stage.micro_batch_size if self.stages is not None else None
        if self._micro_batch_size is None:
            self._micro_batch_size = wanted
        if wanted is not None and self._micro_batch_size != wanted:
            raise ConfigurationError(
                f"the stage's micro_batch_size is {wanted} but the training loader's batch size is"
                f" {self._micro_batch_size}: build the loader with the micro_batch_size that set_stage is given."
            )
        if self._owner is not None:
            if self._micro_batch_size is None:
                raise ConfigurationError(
                    f"{self._owner[0]} cannot see the training loader's batch size: use a torch DataLoader with"
                    " batch_size, or a batch sampler with an attribute batch_size."
                )
            batch_size = self._next_batch_size(trainer)
            assert batch_size is not None
            try:
                needed = micro_batches_for(batch_size, self._micro_batch_size, trainer.world_size)
            except ValueError as error:
                raise ConfigurationError(str(error)) from None
            check_epoch_holds(batch_size, needed, self.loop.micro_batches_per_epoch, self._owner[1].last_window)
        self._read_warmup(trainer, loaders)
        if self.rate is not None:
            self._write_rate(trainer)  # of a stage's first step: its warmup was not known before

    def _read_warmup(self, trainer: L.Trainer, loaders: list[Any]) -> None:
        """Tell the rate's rule how many samples an epoch and the run have, as far as that is known."""
        unit = self._micro_batch_size * trainer.world_size if self._micro_batch_size is not None else None
        limited = self.loop.micro_batches_per_epoch if trainer.limit_train_batches != 1.0 else math.inf
        epoch = samples_per_epoch(loaders, limited, unit)
        batch_size, limits = self._next_batch_size(trainer), []
        if trainer.max_steps != -1 and batch_size is not None:
            limits.append(trainer.max_steps * batch_size)
        if epoch is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            limits.append(trainer.max_epochs * epoch)
        self._rule.know_data(trainer.global_step, epoch, min(limits, default=None))

    def _take_resumable_sampler(self, loader: Any) -> bool:
        """Whether a loader's order follows from the samples consumed; a training loader is told how many those are."""
        if not isinstance(getattr(loader, "batch_sampler", None), ResumableBatchSampler):
            return False
        if self._loading:
            self._follow(loader)
        return True

    def _follow(self, loader: Any) -> None:
        sampler = getattr(loader, "batch_sampler", None)
        if isinstance(sampler, ResumableBatchSampler):
            sampler.follow(samples_consumed=self._samples_now, epoch_start=self._epoch_start)
            # Lightning looks for a state_dict on the loader; this one goes on without.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")

    # -- the learning rate ---------------------------------------------------------------------------------------------

    def _stage_over(self, trainer: L.Trainer) -> bool:
        """Whether the next optimizer step is not of the stage that is served."""
        return self.stages is not None and self.stages.ends_after(trainer.global_step)

    def _write_rate(self, trainer: L.Trainer) -> None:
        """Set the rate of the next optimizer step."""
        assert self.rate is not None
        if self._stage_over(trainer):
            return
        self.rate.write(self._rule.rate(trainer.global_step, self._next_batch_size(trainer)))

    def _update_schedulers(self, update: Callable[[], None]) -> None:
        if self.rate is None:
            update()
            return
        with self.rate.unscaled():
            update()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save(self, save: Callable[[], None]) -> None:
        """Save with unscaled rates. Inside a window weights are those of its start, and so is the progress saved."""
        with ExitStack() as stack:
            if self._window is not None:
                stack.enter_context(self.loop.rewound(self._window.seen))
            if self.rate is not None:
                stack.enter_context(self.rate.unscaled())
            save()

    def state_dict(self) -> dict[str, Any]:
        stage = self.stages.state_dict() if self.stages is not None else {}
        own = {"samples": self.samples, "tokens": self.tokens, "unit": self._mean.unit}
        return {**own, "epoch_start": self._epoch_start, **stage}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples, self.tokens, self._mean.unit = (state_dict[key] for key in ("samples", "tokens", "unit"))
        self._epoch_start = state_dict["epoch_start"]
        if self.stages is not None:
            self.stages.load_state_dict(state_dict)

    # -- the end -------------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._give_up_window()
        self._give_back_rate()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._give_up_window()
        self._give_back_rate()
        if self._loop is not None:
            self._loop.restore()  # Lightning does not call teardown now, and the module may be trained elsewhere

    def _give_up_window(self) -> None:
        """Training ends inside a window: its gradients go, and checkpoints from now on lie at the last one's end."""
        if self._window is not None:
            self.loop.rewind(self._window.seen)
            self._window = None

    def _give_back_rate(self) -> None:
        if self.rate is not None:
            self.rate.restore()
            self.rate = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._loop is not None:
            self._loop.restore()
        if self.stages is not None:
            self._stage_samples = self.stages.samples
        self._loop = self._owner = self.stages = self._window = self._rates = self.rate = None
        self._rule, self._closes, self._loading, self._ran = RateRule(), True, False, False

    @property
    def loop(self) -> LoopAccess:
        """Lightning's loop, between setup and teardown."""
        assert self._loop is not None, "the adapter is used outside of fit"
        return self._loop
