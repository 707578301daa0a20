"""What is replaced in Lightning's training loop while `fit` runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from torch.utils.data import DataLoader

from lightning_scale.lightning_internals.loop_state import LoopState


class LoopAccess(LoopState):
    """What the window needs of one Trainer's loop, and how it is put back.

    Args:
        trainer: The Trainer, in ``fit``.

    Raises:
        RuntimeError: where this version of Lightning lacks a part that is relied on; it names the version.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__(trainer)
        self._undo: list[Callable[[], object]] = []

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
        setattr(owner, name, make(getattr(owner, name)))
        self._undo.append(lambda: vars(owner).pop(name, None))

    def _wrap(self, owner: Any, name: str, wrap: Callable[[Callable[[], None]], None]) -> None:
        """Let ``wrap(call)`` run each call of a method."""
        self._replace(owner, name, lambda original: lambda *args, **kwargs: wrap(lambda: original(*args, **kwargs)))

    def restore(self) -> None:
        """Put back everything that was replaced."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def run_instead(self, run: Callable[[], None]) -> None:
        """Let ``run()`` be called instead of the training loop."""
        self._replace(self._fit_loop, "run", lambda _: run)

    def decide_steps(self, closes: Callable[[], bool]) -> None:
        """Let ``closes()`` say whether the optimizer steps after the present micro-batch.

        ``no_sync``, schedulers, ``global_step``, ``max_steps`` and validation follow from that one answer.
        """
        self._replace(self._epoch_loop, "_should_accumulate", lambda _: lambda: not closes())

    def after_training_step(self, see: Callable[[Any], None]) -> None:
        """Call ``see(output)`` with what each ``training_step`` returned (callbacks see it too late)."""

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def training_step(*args: Any, **kwargs: Any) -> Any:
                output = original(*args, **kwargs)
                see(output)
                return output

            return training_step

        self._replace(self._trainer.strategy, "training_step", make)

    def zero_grad_only_when(
        self, module: L.LightningModule, first: Callable[[], bool], zeroed: Callable[[], None]
    ) -> None:
        """Let gradients be zeroed only before micro-batches for which ``first()`` holds; call ``zeroed()`` then."""

        def make(original: Callable[..., None]) -> Callable[..., None]:
            def optimizer_zero_grad(*args: Any, **kwargs: Any) -> None:
                if first():
                    original(*args, **kwargs)
                    zeroed()

            return optimizer_zero_grad

        self._replace(module, "optimizer_zero_grad", make)

    def around_schedulers(self, wrap: Callable[[Callable[[], None]], None]) -> None:
        """Let ``wrap(update)`` run each update of the learning-rate schedulers."""
        self._wrap(self._epoch_loop, "update_lr_schedulers", wrap)

    def count_scheduler_steps(self) -> None:
        """Let a step-wise scheduler's ``frequency`` count optimizer steps of the run; Lightning counts micro-batches."""
        batches = self._epoch_loop.batch_progress

        def make(original: Callable[..., None]) -> Callable[..., None]:
            def update_lr_schedulers(interval: str, *args: Any, **kwargs: Any) -> None:
                if interval != "step":
                    return original(interval, *args, **kwargs)
                kept, batches.current.ready = batches.current.ready, self._epoch_loop.global_step
                try:
                    original(interval, *args, **kwargs)
                finally:
                    batches.current.ready = kept

            return update_lr_schedulers

        self._replace(self._epoch_loop, "update_lr_schedulers", make)

    def around_saving(self, wrap: Callable[[Callable[[], None]], None]) -> None:
        """Let ``wrap(save)`` run each ``Trainer.save_checkpoint``."""
        self._wrap(self._trainer, "save_checkpoint", wrap)

    def around_loading_data(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Run ``before()`` and ``after()`` whenever the loop makes sure that it has a training loader (every epoch)."""

        def make(original: Callable[[], None]) -> Callable[[], None]:
            def setup_data() -> None:
                before()
                original()
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

    def estimate_steps(self, steps: Callable[[int], int]) -> None:
        """Let ``Trainer.estimated_stepping_batches`` be ``steps(max_epochs)``, as far as that is known.

        It is a property, so the Trainer gets a subclass of its own class.
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

        self._trainer.__class__ = type(
            plain.__name__, (plain,), {"estimated_stepping_batches": property(estimated_stepping_batches)}
        )
        self._undo.append(lambda: setattr(self._trainer, "__class__", plain))

    def leave_sampler_alone(self, mine: Callable[[DataLoader[Any]], bool]) -> None:
        """Keep Lightning from putting a DistributedSampler into loaders for which ``mine(loader)`` holds."""
        self._replace(
            self._trainer._data_connector,
            "_requires_distributed_sampler",
            lambda original: lambda loader: not mine(loader) and original(loader),
        )
