"""Steps left out for a NaN or Inf gradient: their number in the logs, and an end where they do not end."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError, NonfiniteGradientsError
from lightning_scale.one_run import OfOneRun
from lightning_scale.optim.backends.norms import nonfinite
from lightning_scale.optim.base import OptimizerBase
from lightning_scale.optim.dtensor import local
from lightning_scale.optim.groups import parameter_names
from lightning_scale.window.mean_gradient import KeepsGradients, users_own

_NAMED = 10  # in an error; a NaN in the loss reaches every layer


class NonfiniteMonitor(L.Callback):
    """Logs ``skipped_steps``, and stops training after ``stop_after`` skipped steps in a row.

    The optimizers of this package leave a step out on all ranks where one rank's gradient holds a NaN or an Inf. Now and
    then that does no harm; step after step, a run only burns time. Then all ranks stop at the same step, with an error that
    names the layers whose gradients were not finite before they were clipped, and the ranks whose own loss was not.

    Every n steps the count comes to the host, goes to the loggers where it has changed, and to the progress bar; other steps
    wait for no device, and still no run of skipped steps is missed, nor its layers' names, for both are kept on the device.
    Gradients are read once more in every step. The steps skipped up to a checkpoint count after a resume.

    Steps that a gradient scaler skips (float16) never reach the optimizer and are not counted. Under ZeRO in float32
    DeepSpeed skips such steps, too; they are counted all the same.

    Args:
        stop_after: So many skipped steps in a row end the run.
        every_n_steps: Optimizer steps between two looks; the end comes at a look, and there is one when training ends.

    Raises:
        ValueError: for numbers below 1.
        ConfigurationError: where the optimizer is not one of this package's, or has ``skip_nonfinite=False``: nothing would
            be skipped, nor counted.
        NonfiniteGradientsError: on all ranks, after ``stop_after`` skipped steps in a row.
    """

    def __init__(self, stop_after: int = 10, every_n_steps: int = 10) -> None:
        for name, value in (("stop_after", stop_after), ("every_n_steps", every_n_steps)):
            if value < 1:
                raise ValueError(f"{name} is {value}: give a whole number of at least 1.")
        self.stop_after = stop_after
        self.every_n_steps = every_n_steps
        self._in_a_row: Tensor | None = None
        self._loaded = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._in_a_row, self._loaded = None, 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._watch = _GradientWatch(trainer, pl_module, _guarded(trainer))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step, self._logged = trainer.global_step, -1
        self._seen = _guarded(trainer).skipped_steps.clone()
        self._in_a_row = torch.tensor(self._loaded, device=self._seen.device)
        self._bad_loss: Tensor | None = None  # in this window, on this rank
        # The longest run of skipped steps: how long, after which step it was that long, and what was not finite then.
        self._longest, self._at = torch.zeros_like(self._seen), torch.full_like(self._seen, self._last_step)
        self._layers: Tensor | None = None
        self._loss: Tensor | None = None

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        bad = ~loss.detach().isfinite().all()
        self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self._watch.before_step()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step == self._last_step:
            return  # inside a window
        self._last_step = step
        self._note(_guarded(trainer).skipped_steps, step)
        if step % self.every_n_steps == 0:
            self._look(trainer)
            pl_module.log("skipped_steps", float(self._logged), prog_bar=True, logger=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer)

    def _note(self, skipped: Tensor, step: int) -> None:
        """After a step, on the device alone."""
        assert self._in_a_row is not None
        device = skipped.device  # the parameters', from the first step on
        now = skipped != self._seen.to(device)
        self._seen = skipped.clone()
        self._in_a_row = torch.where(now, self._in_a_row.to(device) + 1, 0)
        longest = now & (self._in_a_row >= self._longest.to(device))
        self._longest = torch.where(longest, self._in_a_row, self._longest.to(device))
        self._at = torch.where(longest, step, self._at.to(device))
        self._layers = _kept(longest, self._watch.after_step(), self._layers)
        self._loss, self._bad_loss = _kept(longest, self._bad_loss, self._loss), None

    def _look(self, trainer: L.Trainer) -> None:
        """Bring the counts to the host; the same on all ranks, for they skip the same steps."""
        skipped, longest, at = torch.stack([self._seen, self._longest, self._at]).tolist()
        if skipped != self._logged:
            self._logged = skipped
            for logger in trainer.loggers if trainer.is_global_zero else ():
                logger.log_metrics({"skipped_steps": skipped}, step=self._last_step - 1)  # loggers count steps from 0
        if longest >= self.stop_after:
            raise NonfiniteGradientsError(self._sentence(trainer, longest, at))

    def _sentence(self, trainer: L.Trainer, longest: int, at: int) -> str:
        flags = [] if self._layers is None else self._layers.tolist()
        layers = [name for name, bad in zip(self._watch.names, flags, strict=bool(flags)) if bad]
        own = (layers, self._loss is not None and bool(self._loss))
        ranks: list[Any] = [own]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, own)
        found = set().union(*(names for names, _ in ranks))
        named = [name for name in dict.fromkeys(self._watch.names) if name in found]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        lost = [str(rank) for rank, (_, bad) in enumerate(ranks) if bad]
        whose = f" The loss was not finite on rank {', '.join(lost)}." if lost else " The loss was finite on all ranks."
        return (
            f"{longest} steps in a row were skipped, up to step {at}, for their gradients had NaN or Inf elements, in that"
            f" step those of {', '.join(named[:_NAMED])}{more}.{whose} Weights and optimizer state are as before these steps:"
            f" look at their samples, lower the learning rate, or raise NonfiniteMonitor's stop_after ({self.stop_after})."
        )

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": 0 if self._in_a_row is None else int(self._in_a_row)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = int(state_dict["in_a_row"])


def _kept(now: Tensor, new: Tensor | None, old: Tensor | None) -> Tensor | None:
    """``new`` where it is time for it, else ``old``."""
    if new is None:
        return old
    before = torch.zeros_like(new)
    if old is not None:
        before.view(-1)[: old.numel()] = old.to(new.device).view(-1)  # layers may have come since
    return torch.where(now.to(new.device), new, before)


def _guarded(trainer: L.Trainer) -> OptimizerBase:
    """The optimizer, out of a strategy's wrapping.

    Raises:
        ConfigurationError: where it does not skip steps.
    """
    optimizer = users_own(trainer.optimizers[0]) if trainer.optimizers else None
    if isinstance(optimizer, OptimizerBase) and optimizer.skip_nonfinite:
        return optimizer
    if isinstance(optimizer, OptimizerBase):
        raise ConfigurationError(
            "NonfiniteMonitor counts steps that the optimizer skips, and it has skip_nonfinite=False: leave that out, or leave"
            " NonfiniteMonitor out."
        )
    raise ConfigurationError(
        f"NonfiniteMonitor counts steps that the optimizer skips, and {type(optimizer).__name__} steps on NaN, too: use an"
        " optimizer of lightning_scale.optim, or remove NonfiniteMonitor."
    )


class _GradientWatch(OfOneRun):
    """Says which layers' gradients were not finite in a step, on this rank.

    It reads gradients before they are clipped, for a clip by the norm spreads a NaN over all of them.

    Args:
        trainer: In ``fit``, when there are optimizers.
        module: The module, whose names parameters have.
        optimizer: The optimizer that the user configured.

    Attributes:
        names: The layers' names, in the order of what `after_step` returns.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer) -> None:
        self._strategy = trainer.strategy
        self._flags: Tensor | None = None
        if isinstance(self._strategy, KeepsGradients):
            self.names = self._strategy.watch_gradients()
            self._params: list[Tensor] = []
            return
        self._module, self._optimizer = module, optimizer
        self.names, self._params = [], []

    def before_step(self) -> None:
        """After the window's gradients are summed over ranks, before they are clipped."""
        if isinstance(self._strategy, KeepsGradients):
            return
        if sum(len(group["params"]) for group in self._optimizer.param_groups) != len(self._params):
            self._add_new_ones()
        if self._params:
            grads = [[] if p.grad is None else [local(p.grad)] for p in self._params]
            self._flags = nonfinite(grads, next((g.device for (g,) in filter(None, grads)), self._params[0].device))

    def _add_new_ones(self) -> None:
        """Take in the parameters of groups that have been added, behind those that are known."""
        own = {id(p): name for name, p in self._module.named_parameters()}
        names = parameter_names(self._optimizer)
        known = set(map(id, self._params))
        new = [p for group in self._optimizer.param_groups for p in group["params"] if id(p) not in known]
        self._params += new
        self.names += [own.get(id(p), names[id(p)]) for p in new]

    def after_step(self) -> Tensor | None:
        """Of the last step: whether each layer's gradient was not finite, [layers] bool; None before the first."""
        return self._strategy.nonfinite_layers() if isinstance(self._strategy, KeepsGradients) else self._flags
