"""What is replaced in Lightning's training loop while `fit` runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_scale.lightning_internals.loop_state import LoopState
from lightning_scale.lightning_internals.replacing import Replacing

FINDERS = (LearningRateFinder, BatchSizeFinder)
"""The callbacks of Lightning's Tuner."""


class LoopAccess(Replacing, LoopState):
    """What the window needs of one Trainer's loop, and how it is put back.

    Args:
        trainer: The Trainer, in ``fit``.

    Raises:
        RuntimeError: where this version of Lightning lacks a part that is relied on; it names the version.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        Replacing.__init__(self)
        LoopState.__init__(self, trainer)
        self._loading = False

    def _wrap(self, owner: Any, name: str, wrap: Callable[[Callable[[], None]], None]) -> None:
        """Let ``wrap(call)`` run each call of a method."""
        self._replace(owner, name, lambda original: lambda *args, **kwargs: wrap(lambda: original(*args, **kwargs)))

    def around_hook(self, callback: L.Callback, hook: str, wrap: Callable[[Callable[[], None]], None]) -> None:
        """Let ``wrap(call)`` run each call of a callback's hook."""
        self._wrap(callback, hook, wrap)

    def leave_out_tuners(self) -> None:
        """Take out of the Trainer's callbacks those that its Tuner has put there for one search."""
        callbacks = self._trainer.callbacks
        self._trainer.callbacks = [c for c in callbacks if not (isinstance(c, FINDERS) and c._early_exit)]

    def log(self, module: L.LightningModule, key: str, value: float, prog_bar: bool = False) -> None:
        """``module.log`` of a number in a callback's ``on_train_batch_end``.

        From the second time on the number goes straight to where it is kept; ``log`` takes 0.2 ms to see that it can be there.
        """
        # float64: float32 does not count further than 16,777,216 by ones
        number = torch.tensor(value, dtype=torch.float64)
        results, kept = self._epoch_loop._results, f"on_train_batch_end.{key}"
        if kept in results:
            results.update_metrics(kept, number, 1)
        else:
            module.log(key, number, prog_bar=prog_bar)

    def run_instead(self, run: Callable[[], None]) -> None:
        """Let ``run()`` be called instead of the training loop."""
        self._replace(self._fit_loop, "run", lambda _: run)

    def decide_steps(self, closes: Callable[[], bool]) -> None:
        """Let ``closes()`` say whether the optimizer steps after the present micro-batch.

        ``no_sync``, schedulers, ``global_step``, ``max_steps`` and validation follow from that one answer.
        """
        self._replace(self._epoch_loop, "_should_accumulate", lambda _: lambda: not closes())

    def around_training_step(
        self, before: Callable[[], None] = lambda: None, after: Callable[[Any], None] = lambda output: None
    ) -> None:
        """Call ``before()`` ahead of each ``training_step``, and ``after(output)`` with what it returned (callbacks see it too
        late)."""

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def training_step(*args: Any, **kwargs: Any) -> Any:
                before()
                output = original(*args, **kwargs)
                after(output)
                return output

            return training_step

        self._replace(self._trainer.strategy, "training_step", make)

    def around_optimizer_step(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Call ``before()`` and ``after()`` around the optimizer's step, inside of the module's ``optimizer_step``."""

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def optimizer_step(*args: Any, **kwargs: Any) -> Any:
                before()
                try:
                    return original(*args, **kwargs)
                finally:
                    after()

            return optimizer_step

        self._replace(self._trainer.precision_plugin, "optimizer_step", make)

    def begin_windows(self, first: Callable[[], bool], begun: Callable[[], None]) -> None:
        """Let each window have one ``on_before_zero_grad`` and ``optimizer_zero_grad``, before its first backward pass.

        Args:
            first: Whether the window has had none yet.
            begun: Called after them.
        """
        automatic = self._epoch_loop.automatic_optimization

        def zero_grad(batch_idx: int, optimizer: Any) -> None:
            if first():
                automatic._on_before_zero_grad(optimizer)
                automatic._optimizer_zero_grad(batch_idx, optimizer)
                begun()

        self._replace(automatic, "_make_zero_grad_fn", lambda _: lambda *args: lambda: zero_grad(*args))

    def leave_losses_whole(self) -> None:
        """Do not divide losses by ``Trainer.accumulate_grad_batches``: the window weighs and divides their gradients."""
        automatic = self._epoch_loop.automatic_optimization
        plain = automatic.output_result_cls

        class Whole(plain):  # type: ignore[misc, valid-type]
            @classmethod
            def from_training_step_output(cls, output: Any, normalize: int = 1) -> Any:
                return plain.from_training_step_output(output)

        automatic.output_result_cls = Whole
        self._undo.append(lambda: vars(automatic).pop("output_result_cls", None))

    def around_schedulers(self, wrap: Callable[[Callable[[], None]], None]) -> None:
        """Let ``wrap(update)`` run each update of the learning-rate schedulers."""
        self._wrap(self._epoch_loop, "update_lr_schedulers", wrap)

    def count_scheduler_steps(self) -> None:
        """Let a step-wise scheduler's ``frequency`` count optimizer steps of the run; Lightning counts micro-batches."""

        def make(original: Callable[..., None]) -> Callable[..., None]:
            def update_lr_schedulers(interval: str, *args: Any, **kwargs: Any) -> None:
                if interval != "step":
                    return original(interval, *args, **kwargs)
                steps, configs = self._epoch_loop.global_step, self._trainer.lr_scheduler_configs
                kept = [config.frequency for config in configs]
                for config in configs:
                    config.frequency = 1 if steps % config.frequency == 0 else sys.maxsize
                try:
                    original(interval, *args, **kwargs)
                finally:
                    for config, frequency in zip(configs, kept, strict=True):
                        config.frequency = frequency

            return update_lr_schedulers

        self._replace(self._epoch_loop, "update_lr_schedulers", make)

    def around_saving(self, wrap: Callable[[Callable[[], None]], None]) -> None:
        """Let ``wrap(save)`` run each ``Trainer.save_checkpoint``."""
        self._wrap(self._trainer, "save_checkpoint", wrap)

    def around_loading_data(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Run ``before()`` and ``after()`` whenever the loop makes sure that it has a training loader (every epoch)."""

        def make(original: Callable[[], None]) -> Callable[[], None]:
            def setup_data() -> None:
                self._loading = True
                try:
                    before()
                    original()
                finally:
                    self._loading = False
                after()

            return setup_data

        self._replace(self._fit_loop, "setup_data", make)

    def around_micro_batches(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Call ``before()`` ahead of everything that belongs to a micro-batch, its fetching included, and ``after()``."""

        def make(original: Callable[..., None]) -> Callable[..., None]:
            def advance(*args: Any, **kwargs: Any) -> None:
                before()
                try:
                    original(*args, **kwargs)
                finally:
                    after()

            return advance

        self._replace(self._epoch_loop, "advance", make)

    def around_epoch_iterators(self, wrap: Callable[[Callable[[], None]], None]) -> None:
        """Let ``wrap(begin)`` make the iterators of each epoch's loaders (shuffling draws its seed there)."""
        self._wrap(self._epoch_loop, "on_run_start", wrap)
        self._wrap(self._fit_loop, "setup_data", wrap)

    def around_validation_data(self, wrap: Callable[[Callable[[], None]], None]) -> None:
        """Let ``wrap(load)`` make validation's loaders and iterators; after a resume a micro-batch begins with that."""
        for name in ("setup_data", "reset"):
            self._wrap(self._epoch_loop.val_loop, name, wrap)

    def validate_unless(self, not_due: Callable[[], bool]) -> None:
        """Do not validate while ``not_due()``.

        A resumed run is asked before its first micro-batch whether it is done with the validation that is due there; where the
        checkpoint's counts were rewound to a window's start, there was none.
        """
        self._replace(
            self._epoch_loop,
            "_should_check_val_fx",
            lambda original: lambda *args, **kwargs: not not_due() and original(*args, **kwargs),
        )

    def validate_when(self, due: Callable[[], bool]) -> None:
        """Let ``due()``, asked after every micro-batch, say whether to validate, in place of the Trainer's intervals."""
        trainer = self._trainer
        self._replace(
            self._epoch_loop,
            "_should_check_val_fx",
            lambda _: lambda fetcher: bool(trainer.enable_validation and due()),
        )
        # ModelCheckpoint and EarlyStopping take this for validation that does not follow epochs.
        kept, trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch, None
        self._undo.append(lambda: setattr(trainer, "check_val_every_n_epoch", kept))

    def tell_steps(self, steps: Callable[[int], int], micro_batches: Callable[[], tuple[int, bool]]) -> None:
        """Let the Trainer's attributes say what steps are made of.

        They are properties, so the Trainer gets a subclass of its own class.

        Args:
            steps: What ``estimated_stepping_batches`` is for so many epochs, as far as that is known.
            micro_batches: What ``accumulate_grad_batches`` is, and whether it is that in every step.
        """
        plain = type(self._trainer)

        def estimated_stepping_batches(trainer: Any) -> int | float:
            if trainer.max_epochs != -1 and trainer.train_dataloader is None:
                trainer.fit_loop.setup_data()
            if trainer.max_epochs == -1 or trainer.num_training_batches == float("inf"):
                estimate: int | float = plain.estimated_stepping_batches.__get__(trainer)
                return estimate
            counted = steps(max(trainer.max_epochs, 1))
            return min(counted, trainer.max_steps) if trainer.max_steps != -1 else counted

        def accumulate_grad_batches(trainer: Any) -> int:
            if self._loading:  # the loaders themselves ask
                return self.accumulate_given
            if trainer.train_dataloader is None:
                trainer.fit_loop.setup_data()
            count, always = micro_batches()
            asks = inspect.currentframe().f_back.f_globals["__name__"]  # type: ignore[union-attr]
            if not always and not asks.startswith("lightning."):
                rank_zero_warn(
                    f"trainer.accumulate_grad_batches is {count} for the present step, and steps of this run have different"
                    " numbers of micro-batches: read trainer.estimated_stepping_batches for the number of steps."
                )
            return count

        def give(trainer: Any, count: int) -> None:
            rank_zero_warn(
                f"trainer.accumulate_grad_batches was set to {count}, which is not used: lightning_scale's callbacks set the"
                " batch size. Remove one of the two."
            )
            vars(trainer)["accumulate_grad_batches"] = count

        told = {
            "estimated_stepping_batches": property(estimated_stepping_batches),
            "accumulate_grad_batches": property(accumulate_grad_batches, give),
            "__reduce__": lambda trainer: (plain.__new__, (plain,), vars(trainer)),  # a copy is of its own class
        }
        self._trainer.__class__ = type(plain.__name__, (plain,), told)
        self._undo.append(lambda: setattr(self._trainer, "__class__", plain))

    @property
    def accumulate_given(self) -> int:
        """``accumulate_grad_batches`` as the Trainer was given it."""
        return int(vars(self._trainer)["accumulate_grad_batches"])

    def leave_sampler_alone(self, mine: Callable[[DataLoader[Any]], bool]) -> None:
        """Keep Lightning from putting a DistributedSampler into loaders for which ``mine(loader)`` holds."""
        self._replace(
            self._trainer._data_connector,
            "_requires_distributed_sampler",
            lambda original: lambda loader: not mine(loader) and original(loader),
        )
