"""A run's picture, its numbers as CSV, and a table at the end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from examples.bert.run_record import RunRecord, StepRow, ValidationRow, XAxis
from examples.bert.table import stage_table

log = logging.getLogger(__name__)


class RunReport(L.Callback):
    """Writes ``report.png`` and ``report.csv`` at the end of fit, and prints a table of the stages. A fit that ends by an
    exception leaves the files too.

    Recorded at every optimizer step: training loss (mean over all items of the step's micro-batches and ranks), learning
    rate, global batch, sequence length; every few steps the trust ratios of the layers that adapt, from an optimizer that
    keeps them (LAMB, LARS); at every validation its loss and accuracy, and the loss of guessing by word frequency, which is
    logged as ``val_frequency_guess`` too. The rows are part of checkpoints, so a resumed run's picture is whole. Its place
    among the callbacks does not matter.

    Args:
        dir: Where the files go; None for the run's log folder.
        trust_ratio_every: Optimizer steps between two looks at the trust ratios.
        x_axis: Whether the picture is drawn over "steps" or over "samples" consumed.

    Raises:
        ValueError: for ``trust_ratio_every`` below 1.
    """

    def __init__(self, dir: str | None = None, trust_ratio_every: int = 10, x_axis: XAxis = "steps") -> None:
        if trust_ratio_every < 1:
            raise ValueError(f"trust_ratio_every is {trust_ratio_every}: give a whole number of at least 1.")
        self.dir = dir
        self.trust_ratio_every = trust_ratio_every
        self.x_axis: XAxis = x_axis
        self.record = RunRecord()
        self._folder: Path | None = None
        self._seen_step = 0
        self._sums: list[Tensor] = []  # of each micro-batch: loss · items, items, samples
        self._lr = 0.0

    # -- collecting ----------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Now, and on every rank: log_dir talks to all, and after an exception nobody may be there to answer.
        self._folder = Path(self.dir or trainer.log_dir or trainer.default_root_dir)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = trainer.global_step
        self._sums = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._sums = []  # micro-batches that an epoch's end left out of any step

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        # Now, for outside of a step groups hold the rate that LEGW and stages start from.
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = trainer.callback_metrics["train_loss"].double()
        samples, length = batch["input_ids"].shape
        items = outputs.get("num_items", samples) if isinstance(outputs, dict) else samples
        one = torch.ones_like(loss)  # so that numbers get to the loss' device without a copy
        self._sums.append(torch.stack([loss * items, one * items, one * samples]))
        if trainer.global_step == self._seen_step:
            return  # inside a step's micro-batches
        self._seen_step = trainer.global_step
        # Ranks may hold different numbers of items.
        total, items, samples = trainer.strategy.reduce(torch.stack(self._sums).sum(0), reduce_op="sum").tolist()
        batch_size = round(samples)
        ratios = self._trust_ratios(trainer) if _due(trainer.global_step, self.trust_ratio_every) else ()
        if trainer.is_global_zero:
            before = self.record.steps[-1].samples if self.record.steps else 0
            self.record.steps.append(
                StepRow(
                    trainer.global_step,
                    _stage(trainer),
                    before + batch_size,
                    length,
                    batch_size,
                    self._lr,
                    total / items if items else 0.0,
                    *ratios,
                )
            )
        self._sums = []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _counts(trainer) and hasattr(_data(trainer), "frequency_guess_loss"):
            pl_module.log("val_frequency_guess", _data(trainer).frequency_guess_loss(), prog_bar=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if _counts(trainer) and trainer.is_global_zero and "val_loss" in metrics:
            self.record.add_validation(
                ValidationRow(
                    trainer.global_step,
                    _stage(trainer),
                    metrics["val_loss"],
                    metrics.get("val_accuracy"),
                    metrics.get("val_perplexity"),
                    metrics.get("val_frequency_guess"),
                )
            )

    def _trust_ratios(self, trainer: L.Trainer) -> tuple[float, ...]:
        """Smallest, median and largest ratio of the layers that adapt; nothing where the optimizer keeps none."""
        optimizer: Any = trainer.optimizers[0]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # out of a strategy's wrapping
        stats = optimizer.layer_stats() if hasattr(optimizer, "layer_stats") else {}
        if not stats:
            return ()
        ratios = torch.stack([values.trust_ratio for values in stats.values()]).double().cpu()
        adapting = ratios[ratios != 1.0]
        return (*(float(adapting.quantile(q)) for q in (0.0, 0.5, 1.0)),) if len(adapting) else (1.0, 1.0, 1.0)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return self.record.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.record.load_state_dict(state_dict)

    # -- the end -------------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = self._write(trainer)
        if folder is not None:
            print(f"\n{stage_table(self.record)}\n\npicture: {folder / 'report.png'}\nnumbers: {folder / 'report.csv'}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        try:
            self._write(trainer)
        except Exception:  # whatever it is, the run's own exception is what its user must see
            log.warning("The report of the run that failed could not be written.", exc_info=True)

    def _write(self, trainer: L.Trainer) -> Path | None:
        """Write the fit's files, on rank 0 and once; return their folder where anything was written."""
        folder, self._folder = self._folder, None
        if folder is None or not trainer.is_global_zero or not self.record.steps:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        self.record.write_csv(folder / "report.csv")  # before the picture, which needs more to go right
        from examples.bert.picture import draw

        draw(self.record, folder / "report.png", self.x_axis)
        return folder


def _due(step: int, every: int) -> bool:
    return step == 1 or step % every == 0


def _counts(trainer: L.Trainer) -> bool:
    """Whether the present validation is one of a training run, and not the check before it."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _data(trainer: L.Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _stage(trainer: L.Trainer) -> int:
    """The stage that the data serves, from 1."""
    stage = getattr(_data(trainer), "stage", None)
    return stage.index + 1 if stage is not None else 1
