"""Makes Lightning's loop follow the window, the stages and the scaled learning rate; every callback asks it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import LearningRateMonitor
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.data import ranks
from lightning_scale.errors import ConfigurationError
from lightning_scale.lightning_internals import LoopAccess
from lightning_scale.schedule import LEGW, Quantity
from lightning_scale.window.conflicts import (
    refuse_batch_conflicts,
    refuse_fetching_steps,
    refuse_finders,
    refuse_manual_optimization,
    refuse_missing_micro_batch,
    refuse_other_namespace,
    refuse_rate_conflicts,
    refuse_scaled_step_without_loss,
    refuse_static_graph,
    refuse_tokens_without_stages,
    refuse_two_clips,
    refuse_two_gradients,
    warn_of_window_cut_off,
)
from lightning_scale.window.learning_rate import ScaledRate
from lightning_scale.window.loader import LoaderHooks, TrainingLoader
from lightning_scale.window.mean_gradient import Items, MeanOverItems, MicroBatch, divide, items_of, users_own
from lightning_scale.window.progress import Progress
from lightning_scale.window.random_streams import RandomStreams
from lightning_scale.window.stages import StageController
from lightning_scale.window.window import BatchSizeOwner, Window


class LoopAdapter(L.Callback):
    """One Trainer's progress, window and learning rate.

    Callbacks of this package find it with `attach` in their ``setup``; it puts itself before all others, so that they
    see the mean gradient and the right rate. Its state (samples and tokens consumed) is part of checkpoints.
    """

    def __init__(self) -> None:
        self.progress = Progress()
        self.batch_size = 0
        """Samples of the window under way, over all ranks; at its end those that the step was the mean of."""
        self.rate = ScaledRate()
        self._mean = MeanOverItems()
        self._items: Items = 0.0
        self._loop: LoopAccess | None = None
        self._loader: TrainingLoader | None = None
        self._window: Window | None = None
        self._closes = True  # between windows, and so in every checkpoint
        self._stage_samples = 0
        self._validation_interval: Quantity | None = None
        self._begun = False  # whether a micro-batch has been, since fit began
        self._data: LoaderHooks | None = None

    def __reduce__(self) -> tuple[type[LoopAdapter], tuple[()]]:
        """A copy belongs to no Trainer yet (see `OfOneRun`)."""
        return LoopAdapter, ()

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

    def own_batch_size(self, name: str, owner: BatchSizeOwner) -> None:
        """Let ``owner`` say how large each batch is.

        Raises:
            ConfigurationError: where another callback does so already.
        """
        loader = self.loader
        if loader.owner is not None and loader.owner is not owner:
            raise ConfigurationError(
                f"{loader.owner_name} and {name} both set the batch size: keep one of them"
                " (a stage's batch_size can be a schedule)."
            )
        if loader.owner is None:
            self.loop.tell_steps(loader.steps, self._micro_batches_told)
        loader.owner, loader.owner_name = owner, name

    def scale_rate(self, factor: Callable[[int], float] | None) -> None:
        """Multiply the rate with ``factor(batch size)``, and with what the batch's schedule leaves of a decay."""
        self.rate.rule.ramps, self.rate.rule.batch_factor = True, factor

    def draw_from(self, streams: RandomStreams) -> None:
        """Draw the random numbers of training steps from a stream of their own."""
        self.data.streams = streams
        self.loop.around_micro_batches(streams.begin_micro_batch, streams.leave)
        self.loop.around_validation_data(streams.run_outside)

    def use_legw(self, rule: LEGW) -> None:
        """Scale the optimizer's rate by LEGW's rule.

        Raises:
            ConfigurationError: where there is another LEGW rule already.
        """
        if self.rate.rule.legw is not None and self.rate.rule.legw is not rule:
            raise ConfigurationError("there are two LEGWWarmup callbacks: keep one of them.")
        self.rate.rule.legw = rule

    def follow_stages(self, stages: StageController) -> None:
        """Train in stages.

        Raises:
            ConfigurationError: where stages are followed already.
        """
        if self.stages is not None and self.stages is not stages:
            raise ConfigurationError("there are two SequenceLengthStages callbacks: put all stages into one.")
        self.progress.stages = stages
        stages.samples = self._stage_samples  # of an earlier fit, or 0
        self.rate.rule.plan = stages.plan
        self.loop.set_max_steps(stages.plan.total_steps)

    def validate_every(self, interval: Quantity) -> None:
        """Validate where a step reaches a multiple of ``interval`` (steps, samples or tokens).

        Raises:
            ConfigurationError: where validation has an interval already.
        """
        if self._validation_interval not in (None, interval):
            raise ConfigurationError("there are two ValidateEvery callbacks: keep one of them.")
        self._validation_interval = interval
        self.loop.validate_when(self._validation_due)

    # -- what they call in on_train_batch_end --------------------------------------------------------------------------

    def log_step(self, pl_module: L.LightningModule, **more: float) -> None:
        """Log what the optimizer step that this micro-batch has closed was made of, if it has closed one."""
        if not self._stepped:
            return
        values = {**more, "batch_size": self.batch_size}
        if self.rate.rule.sources:
            values["lr"] = float(self.rate.last)
        for key, value in values.items():
            self.loop.log(pl_module, key, value, prog_bar=True)
        self.loop.log(pl_module, "samples_consumed", self.progress.samples)

    # -- what they ask -------------------------------------------------------------------------------------------------

    @property
    def window_opens(self) -> bool:
        """Whether the present micro-batch is a step's first."""
        return self._window is not None and self._window.seen == 1

    @property
    def makes_means(self) -> bool:
        """Whether steps are means over exactly their items; else they are what Lightning's own accumulation makes."""
        return self.loader.owner is not None

    def micro_batch(self, trainer: L.Trainer) -> MicroBatch:
        """The micro-batch whose gradient comes next; in ``on_before_backward``."""
        assert self._window is not None, "there is a window from on_train_batch_start on"
        held = self._window.held
        if self.loader.owner is None:
            return MicroBatch(held, float(held), 1 / trainer.accumulate_grad_batches)  # Lightning divides the loss
        return MicroBatch(held, self._items, self._items / (self._mean.unit or 1.0))

    @property
    def micro_batches_a_step(self) -> int | None:
        """When loaders are known: micro-batches of each rank in every step but perhaps an epoch's last; None for several."""
        return self.loader.micro_batches_a_step(self.stages.plan if self.stages is not None else None)

    def _micro_batches_told(self) -> tuple[int, bool]:
        """Micro-batches of the present step or the next, and whether of every step."""
        always = self.micro_batches_a_step
        return self.loader.micro_batches(self.progress.now) if always is None else always, always is not None

    # -- before training -----------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.teardown(trainer, pl_module, stage)  # what a fit that raised has left
            sampled = trainer.distributed_sampler_kwargs  # type: ignore[attr-defined]
            if sampled is not None and sampled["num_replicas"] != trainer.world_size:
                ranks.tell((sampled["rank"], sampled["num_replicas"]))
            loop = self._loop = LoopAccess(trainer)
            loader = self._loader = TrainingLoader(trainer, loop)
            self._data = LoaderHooks(
                trainer, loop, loader, self.progress, lambda *known: self._know_data(trainer, *known)
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop, loader = self.loop, self.loader
        refuse_two_clips(trainer)
        who = [loader.owner_name] if loader.owner is not None else self.rate.rule.sources
        if who:
            refuse_finders(trainer, loop, " and ".join(who))
            refuse_fetching_steps(pl_module, " and ".join(who))
        if loader.owner is not None:
            refuse_batch_conflicts(trainer, pl_module, loader.owner_name, loop.accumulate_given)
            loop.count_scheduler_steps()
            loop.decide_steps(lambda: self._closes)
            loop.around_training_step(after=lambda output: self._see_output(trainer, output))
            loop.begin_windows(self._nothing_to_keep, self._begin_gradients)
            loop.leave_losses_whole()
        rule = self.rate.rule
        refuse_tokens_without_stages(self._validation_interval, rule.plan)
        if rule.sources:
            refuse_manual_optimization(pl_module, " and ".join(rule.sources))
            refuse_rate_conflicts(trainer, rule, loader.schedule())
            # The optimizer's step has done it before its closure comes to the last micro-batch's.
            loop.around_training_step(before=lambda: None if self.rate.scaled else self.write_rate(trainer))
            loop.around_optimizer_step(lambda: self.write_rate(trainer), lambda: self.rate.release(stepped=True))
            loop.around_schedulers(lambda update: self._update_schedulers(trainer, update))
            for monitor in (c for c in trainer.callbacks if isinstance(c, LearningRateMonitor)):  # type: ignore[attr-defined]
                loop.around_hook(monitor, "on_train_epoch_start", lambda look: self._with_rates(trainer, look))
                loop.around_hook(monitor, "on_train_batch_start", lambda look: self._with_rates(trainer, look))
            self.rate.prepare(users_own(trainer.optimizers[0]))
        loop.around_saving(self._save)
        loop.validate_unless(lambda: self.data.no_validation_due and not self._begun)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.data.enter_stage()  # validation, too, has a stage's length

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.data.trained = True
        self.rate.begin()
        self._with_rates(trainer, lambda: None)  # refuses what cannot be computed
        if self.loader.owner is not None and self.micro_batches_a_step != 1:
            refuse_two_gradients(self.loader.owner_name, users_own(trainer.optimizers[0]))
            refuse_static_graph(trainer, self.loader.owner_name)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.data.begin_epoch()
        self.rate.release()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Left open where a module's on_train_batch_start returned -1, or a loader ended without a word. (Where training
        # stops, its end gives the window up.)
        if self._window is not None and not self.loop.stopping:
            if self.loader.owner is not None and self.loader.owner.last_window == "step":
                warn_of_window_cut_off(self._window.first is not None)
            self._end_window(self._window)
        self.rate.write_again()  # for those who log it

    # -- a window ------------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._begun:
            self.loop.forget_restart()
            self._begun = True
        if self._window is None:
            self._window = self.loader.window(self.progress.now)
            self.batch_size = self._window.batch_size
            self._window.opened_at = trainer.global_step
        self.loader.begin_micro_batch(self._window, batch)
        if self.stages is not None and self._window.full and self.stages.ends_after(trainer.global_step + 1):
            self.loop.end_epoch()
        last_window = self.loader.owner.last_window if self.loader.owner is not None else "step"
        self._closes = self._window.closes(epoch_ends=self.loop.epoch_ends, last_window=last_window)

    def _see_output(self, trainer: L.Trainer, output: Any) -> None:
        """After ``training_step``: how many items its loss is the mean of."""
        if self._window is not None:
            if self._window.computed == self._window.seen and not self._nothing_to_keep():
                refuse_two_gradients(self.loader.owner_name, users_own(trainer.optimizers[0]), seen=True)
            self._window.computed = self._window.seen
            if output is None and self._closes and self._window.first is not None:
                refuse_scaled_step_without_loss(trainer)
            self._items = items_of(output, self._window.held)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if self.loader.owner is not None and self._window is not None:
            self._window.first = self._window.seen if self._window.first is None else self._window.first
            self._mean.weigh(loss, self._items, trainer)

    def _nothing_to_keep(self) -> bool:
        """Before a backward pass: whether it is the window's first, or that one once more (LBFGS calls its closure again)."""
        return self._window is None or not self._window.zeroed or self._window.first == self._window.seen

    def _begin_gradients(self) -> None:
        self._mean.begin()
        if self._window is not None:
            self._window.zeroed = True

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        # After AMP's unscale and DDP's sum, before clipping and before any other callback looks at the gradients.
        if self.loader.owner is not None:
            divide(self._mean.divisor(trainer), optimizer, trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if args[1] is None and self.loader.owner is not None:
            refuse_missing_micro_batch(self.loader.owner_name)
        self.rate.release()  # of a micro-batch after which there is no step
        ends = self._closes or self.loop.epoch_ends
        if self.data.streams is not None:
            self.data.streams.end_micro_batch(window_ends=ends)
        if self._window is not None and ends:
            self._end_window(self._window)

    def _end_window(self, window: Window) -> None:
        """Add a window's samples to what has been consumed."""
        self._window = None
        self.batch_size = self.loader.consumed(window)
        self.progress.add(self.batch_size)

    def _know_data(self, trainer: L.Trainer, samples_per_epoch: int | None, total_samples: int | None) -> None:
        """New loaders, of a new stage perhaps: warmups in epochs or shares of the run become known."""
        self.rate.rule.know_data(trainer.global_step, samples_per_epoch, total_samples)

    def _update_schedulers(self, trainer: L.Trainer, update: Callable[[], None]) -> None:
        step = trainer.global_step
        warming = self.rate.rule.legw is not None and step <= self.rate.rule.warmup_steps(max(step - 1, 0))
        self.rate.update_schedulers(update, warming)

    def _with_rates(self, trainer: L.Trainer, look: Callable[[], None]) -> None:
        """Call ``look()`` while groups have the next step's rates."""
        self.write_rate(trainer)
        look()
        self.rate.release()

    def write_rate(self, trainer: L.Trainer) -> None:
        """Set the rate of the next optimizer step, unless it is of another stage than the one served."""
        if self.stages is None or not self.stages.ends_after(trainer.global_step):
            samples = self.progress.now
            self.rate.write(trainer.global_step, samples, self.loader.batch_size(samples), self.loader.schedule())

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save(self, save: Callable[[], None]) -> None:
        """Save with unscaled rates. Inside a window weights are those of its start, and so is the progress saved."""
        rewound = self.loop.rewound(self._window.seen) if self._window is not None else nullcontext()
        with rewound, self.rate.unscaled():
            save()

    def state_dict(self) -> dict[str, Any]:
        return {**self.progress.state_dict(), "unit": self._mean.unit, "inside_window": self._window is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._data is not None:
            self._data.restored, self._data.no_validation_due = True, state_dict["inside_window"]
        self.progress.load_state_dict(state_dict)
        self._mean.unit = state_dict["unit"]

    # -- the end -------------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._give_up_window()
        self.rate.end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._give_up_window()
        self.rate.end()
        self._put_back()  # Lightning does not call teardown now, and the module may be trained elsewhere

    def _give_up_window(self) -> None:
        """Training ends inside a window: its gradients go, and checkpoints from now on lie at the last one's end."""
        if self._window is not None and self.loop.steps > self._window.opened_at:
            self._end_window(self._window)  # an exception between the optimizer's step and the micro-batch's end
        elif self._window is not None:
            self.loop.rewind(self._window.seen)
            self._window = None

    def _put_back(self) -> None:
        ranks.tell(None)
        if self._loop is not None:
            self._loop.restore()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._put_back()
        if self.stages is not None:
            self._stage_samples = self.stages.samples
        self._loop = self._loader = self._data = self.progress.stages = self._window = None
        self.rate, self._validation_interval = ScaledRate(), None
        self._closes, self._begun = True, False

    def _validation_due(self) -> bool:
        """After a micro-batch: whether the window that it has closed reached a multiple of the interval."""
        interval = self._validation_interval
        return interval is not None and self._stepped and self.progress.passed(interval, self.loop.steps)

    @property
    def _stepped(self) -> bool:
        """After a micro-batch: whether it has closed a window."""
        return self._closes and self._window is None

    @property
    def stages(self) -> StageController | None:
        """Who takes the data from stage to stage, where there are stages."""
        return self.progress.stages

    @property
    def loop(self) -> LoopAccess:
        """Lightning's loop, between setup and teardown."""
        assert self._loop is not None, "the adapter is used outside of fit"
        return self._loop

    @property
    def loader(self) -> TrainingLoader:
        """The training loader's side, between setup and teardown."""
        assert self._loader is not None, "the adapter is used outside of fit"
        return self._loader

    @property
    def data(self) -> LoaderHooks:
        """What happens whenever the loaders are made, between setup and teardown."""
        assert self._data is not None, "the adapter is used outside of fit"
        return self._data
