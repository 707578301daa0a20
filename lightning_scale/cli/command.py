"""The ``lightning-scale`` command: LightningCLI with what large-batch training needs."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import lightning.pytorch as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    instantiate_class,
)
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

import lightning_scale.strategies  # noqa: F401 (their names are registered)
from lightning_scale.alias import FLAG, alias_pytorch_lightning
from lightning_scale.callbacks import FailTogether
from lightning_scale.callbacks.fail_together import first_failure
from lightning_scale.checkpoints import WholeFileIO
from lightning_scale.cli import plan as plan_command
from lightning_scale.cli.errors import raise_users_own, repeated_callback, sentence, users_own
from lightning_scale.cli.fragments import find_configs
from lightning_scale.cli.resume import HELP, bring_callbacks, check_resume
from lightning_scale.errors import ConfigurationError, NonfiniteGradientsError, UnsafeCheckpointError
from lightning_scale.lightning_internals.command_line import (
    add_subcommand,
    automatic,
    optimizers_added,
    option_names,
    schedulers_added,
)

_SENTENCES = (ConfigurationError, MisconfigurationException, UnsafeCheckpointError, NonfiniteGradientsError)
_CHECKPOINT_WORDS = ("last", "best", "hpc", "registry")


class ScaleArgumentParser(LightningArgumentParser):
    """A parser whose errors are one sentence, not a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:  # type: ignore[override]
        raise_users_own(ex)
        raise ConfigurationError(sentence(message, option_names(self))) from ex


class ScaleCLI(LightningCLI):
    """LightningCLI, with these differences.

    - Optimizer and scheduler are built inside ``configure_optimizers``, from ``named_parameters()``: after
      ``configure_model`` and after sharding, and with the parameters' own names.
    - ``lr_scheduler_interval`` ("step" by default) says how often the scheduler advances.
    - The configuration saved beside the logs may be overwritten, so that the same command runs twice.
    - ``--config callbacks/x.yaml`` also finds the shipped fragments; a configuration error is one sentence.
    - On several ranks all end when one has failed (`FailTogether`).
    - ``fit --resume auto`` goes on from the newest whole checkpoint of the run, or starts it.
    - Checkpoints are loaded without running anything in them, and do not choose the model's class or arguments: those are
      what the configuration says.
    - ``plan`` says what ``fit`` would do.

    Args:
        classes: LightningCLI's arguments by place: the module's class and the data module's, for example.
        args: The command line, a list or a dict; None for ``sys.argv``.
        kwargs: LightningCLI's other arguments.

    Raises:
        ConfigurationError: for a configuration that cannot run.
    """

    def __init__(self, *classes: Any, args: ArgsType = None, **kwargs: Any) -> None:
        given = inspect.signature(LightningCLI).bind_partial(*classes, args=args, **kwargs).arguments
        given.setdefault("parser_class", ScaleArgumentParser)
        given["save_config_kwargs"] = {"overwrite": True, **(given.get("save_config_kwargs") or {})}
        super().__init__(**given)

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        super()._add_arguments(parser)
        if self.auto_configure_optimizers and automatic(optimizers_added(parser)) and not self._configures_itself:
            parser.add_argument(
                "--lr_scheduler_interval",
                type=Literal["step", "epoch"],
                default="step",
                help="Advance the learning-rate scheduler after every optimizer step, or every epoch.",
            )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument("--resume", type=str | None, default=None, help=HELP)
        return parser

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        klass = self.trainer_class if isinstance(self.trainer_class, type) else L.Trainer
        plan = self._prepare_subcommand_parser(klass, "fit", description="Say what fit would do, without training.")
        plan_command.add_arguments(plan)
        add_subcommand(self, parser, "plan", plan, help="Say what fit would do, without training a step.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        if args is None:
            args = sys.argv[1:]
        if isinstance(args, list):
            self.config = parser.parse_args(find_configs(args))
        else:
            super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Lightning would take the model's class path and arguments from a checkpoint that has hyper-parameters."""

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        if self.subcommand == "plan":
            self.parser.add_instantiator(plan_command.build_without_memory, L.LightningModule, prepend=True)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.subcommand == "plan":
            return None  # type: ignore[return-value]  # a plan has one of its own
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "plan":
            return super()._run_subcommand(subcommand)
        options, trainer = self.config_init["plan"], self._get(self.config_init, "trainer")
        try:
            plan_command.run(options, self.model, self.datamodule, trainer, self._written["plan"]["trainer"])
        except (ValueError, TypeError) as error:
            _say_or_raise(error)

    def instantiate_classes(self) -> None:
        if self.subcommand == "plan":
            self._written, self.config = self.config, plan_command.without_trainer(self.config)
        checkpoint, resume = self._get(self.config, "ckpt_path"), self._get(self.config, "resume")
        if resume is not None:
            check_resume(resume, checkpoint)
        if checkpoint and checkpoint not in _CHECKPOINT_WORDS and not _exists(str(checkpoint)):
            raise ConfigurationError(
                f"ckpt_path: there is no checkpoint {checkpoint}: give an existing one, or leave ckpt_path out."
            )
        try:
            super().instantiate_classes()
        except ConfigurationError:
            raise
        except (ValueError, TypeError) as error:
            _say_or_raise(error)
        if self.subcommand != "plan":
            self._complete_trainer(resume)

    def _complete_trainer(self, resume: str | None) -> None:
        """What every run of the command has."""
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = WholeFileIO()  # refuses code, also from addresses of the web
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        if self.trainer.world_size > 1 and not any(isinstance(callback, FailTogether) for callback in callbacks):
            callbacks.insert(0, FailTogether())  # tells the others before any other callback acts on an error
        if resume is not None:
            bring_callbacks(self.trainer, resume, self._get(self.config_init, "trainer.default_root_dir"))

    @property
    def _configures_itself(self) -> bool:
        """Whether a subclass makes of optimizer and scheduler what it wants."""
        return type(self).configure_optimizers is not LightningCLI.configure_optimizers

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Give the model a ``configure_optimizers`` that builds what the configuration names, when Lightning calls it."""
        parser = self._parser(subcommand)
        optimizers, schedulers = automatic(optimizers_added(parser)), automatic(schedulers_added(parser))
        if not self.auto_configure_optimizers or not optimizers:
            return
        if len(optimizers) > 1 or len(schedulers) > 1:
            super()._add_configure_optimizers_method_to_model(subcommand)  # refuses them
        make_optimizer = self._maker(*optimizers[0])
        make_scheduler = self._maker(*schedulers[0]) if schedulers else None
        if make_optimizer is None:
            return
        if type(self.model).configure_optimizers is not L.LightningModule.configure_optimizers:
            rank_zero_warn(
                f"{type(self.model).__name__}.configure_optimizers is not used, for the configuration names an"
                " optimizer: remove one of the two."
            )

        def configure_optimizers() -> Any:
            try:
                optimizer = make_optimizer(list(self.model.named_parameters()))
                scheduler = make_scheduler(optimizer) if make_scheduler is not None else None
            except (ValueError, TypeError) as error:
                _say_or_raise(error)
            if self._configures_itself:
                return self.configure_optimizers(self.model, optimizer, scheduler)
            interval = self._get(self.config_init, "lr_scheduler_interval")
            return optimizer if scheduler is None else _with_scheduler(optimizer, scheduler, interval)

        self.model.configure_optimizers = configure_optimizers  # type: ignore[method-assign]

    def _maker(self, key: str, kind: Any) -> Callable[[Any], Any] | None:
        """What builds the class that the configuration has under a key, from its first argument; None where it has none."""
        init = self._get(self.config_init, key)
        if isinstance(kind, tuple):  # the configuration names one of several
            return (lambda first: instantiate_class((first,), init)) if init else None
        return lambda first: kind(first, **init)


def _say_or_raise(error: Exception) -> NoReturn:
    """A configuration error is one sentence; an error of somebody's own code keeps its traceback."""
    raise_users_own(error)
    raise ConfigurationError(sentence(str(error))) from error


def _exists(checkpoint: str) -> bool:
    """Whether a checkpoint is there, as far as that can be told: addresses of remote ones are taken as they are."""
    return "://" in checkpoint or checkpoint.startswith("registry:") or os.path.exists(checkpoint)


def _with_scheduler(optimizer: Optimizer, scheduler: Any, interval: str) -> dict[str, Any]:
    config = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        config["monitor"] = scheduler.monitor  # type: ignore[attr-defined]
        config["interval"] = "epoch"  # it looks at a validation metric
    return {"optimizer": optimizer, "lr_scheduler": config}


def main(args: ArgsType = None) -> None:
    """Run the ``lightning-scale`` command; a configuration error ends it with one sentence and status 2."""
    # As other commands that take class paths do: modules of the current folder can be named.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if args is None:
            args = sys.argv[1:]
        if isinstance(args, list) and FLAG in args:
            alias_pytorch_lightning()
            args = [arg for arg in args if arg != FLAG]
        ScaleCLI(args=args, trainer_class=L.Trainer)
    except Exception as error:
        _end_after_another_rank(error)
        said = str(error) if isinstance(error, _SENTENCES) else repeated_callback(str(error))
        if said is None or (isinstance(error, MisconfigurationException) and users_own(error)):
            raise
        print(f"lightning-scale: {' '.join(said.split())}", file=sys.stderr)
        raise SystemExit(2) from None


def _end_after_another_rank(error: Exception) -> None:
    """One sentence, not a second traceback, where an error only follows from another rank's."""
    first = first_failure(error)
    if first is not None:
        print(f"lightning-scale: {first}; this rank ends too.", file=sys.stderr)
        raise SystemExit(1) from None
