"""``lightning-scale plan``: what ``fit`` would do with the same files, without training a step."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.cli import LightningArgumentParser

from lightning_scale.errors import ConfigurationError
from lightning_scale.plan.activations import Measured, measure
from lightning_scale.plan.communication import Link
from lightning_scale.plan.configuration import Machine, configured
from lightning_scale.plan.dry_run import DryRun, dry_run
from lightning_scale.plan.formatting import parse_size
from lightning_scale.plan.placeholder_data import placeholder_for
from lightning_scale.plan.report import report
from lightning_scale.plan.scale_up import Timing

# Of the Trainer's arguments, those that are built before it and that a plan has no use for.
_NOT_BUILT = {"strategy": "auto", "logger": False, "plugins": None, "profiler": None}


def add_arguments(parser: LightningArgumentParser) -> None:
    """What ``plan`` takes beside all that ``fit`` takes."""
    add = parser.add_argument
    add("--world-size", "--world_size", type=int | None, help="Plan for so many ranks, instead of devices x num_nodes.")
    add("--format", type=Literal["text", "json"], default="text", help="What is printed.")
    add("--picture", type=str | None, default="plan.png", help="Where the PNG goes; null for none.")
    add(
        "--samples-per-epoch",
        "--samples_per_epoch",
        type=int | None,
        help="Do not open the data: it has so many samples, and every size of batch can be made of them.",
    )
    add("--device-memory", "--device_memory", type=str | None, help='Of each device, such as "80GB": what fits.')
    add(
        "--activations",
        type=bool,
        default=True,
        help="Run a training step on tensors without contents, to see what micro-batches take.",
    )
    add("--latency", type=float | None, help="Of the link between ranks, in microseconds; with bandwidth and compute.")
    add("--bandwidth", type=float | None, help="Of the link between ranks, in GB (10^9 bytes) a second.")
    add("--compute", type=float | None, help="Seconds that a rank computes for a micro-batch.")
    add(
        "--micro-batch-size",
        "--micro_batch_size",
        type=int | None,
        help="Beside samples_per_epoch, if nothing says it.",
    )


def ranks_of(trainer: Any, given: int | None) -> int:
    """The number of ranks: as given, or the configuration's devices x num_nodes.

    Raises:
        ConfigurationError: where neither says it.
    """
    if given is not None:
        if given < 1:
            raise ConfigurationError(f"world_size is {given}: write the number of ranks, 1 or more.")
        return given
    here = ranks_per_node(trainer)
    if here is None:
        raise ConfigurationError(
            f"trainer.devices is {trainer.devices!r}, and how many those are shows on the machine itself: give"
            " --world-size."
        )
    return here * int(trainer.num_nodes or 1)


def ranks_per_node(trainer: Any) -> int | None:
    """The configuration's devices; None where only the machine itself knows."""
    devices = trainer.devices
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    if isinstance(devices, (list, tuple)):
        return len(devices)
    if str(devices).isdigit() and int(devices) > 0:
        return int(devices)
    return 1 if trainer.accelerator == "cpu" else None


def without_trainer(config: Any) -> Any:
    """The configuration with nothing to build for the Trainer but callbacks."""
    config = config.clone()
    for key, value in _NOT_BUILT.items():
        config["plan"]["trainer"][key] = value
    return config


def build_without_memory(class_type: type, *args: Any, applied_instantiation_links: Any, **kwargs: Any) -> Any:
    """A model on the meta device, where its constructor allows that."""
    try:
        with torch.device("meta"):
            return class_type(*args, **kwargs)
    except (NotImplementedError, RuntimeError):  # it looks into its tensors
        return class_type(*args, **kwargs).to("meta")


def run(options: Any, model: L.LightningModule, datamodule: Any, trainer: Any, configuration: Any) -> None:
    """Plan, print, draw.

    Args:
        options: The parsed ``plan`` section.
        model: The module, which may have no memory.
        datamodule: The data; None where the module has its own.
        trainer: The Trainer's arguments, callbacks built.
        configuration: The Trainer's arguments as they were written.
    """
    world_size = ranks_of(configuration, options.world_size)
    if options.samples_per_epoch is not None:
        datamodule = placeholder_for(datamodule, options.samples_per_epoch, options.micro_batch_size)
    elif options.micro_batch_size is not None:
        raise ConfigurationError("micro_batch_size is read beside samples_per_epoch only: leave it out, or give that.")
    timing = _timing(options)
    given = options.device_memory
    machine = Machine(
        world_size,
        min(ranks_per_node(configuration) or world_size, world_size),
        parse_size(given, "device_memory") if given is not None else None,
    )
    placed = configured(
        configuration.strategy, configuration.precision, configuration.accelerator, configuration.gradient_clip_val
    )
    callbacks = trainer.get("callbacks") or []
    with redirect_stdout(stderr):  # what is printed here is no part of the plan
        found = dry_run(model, datamodule, callbacks, trainer, world_size, read_samples=options.activations)
        measured = measure(found, placed) if options.activations else Measured({}, "not asked for")
    print(report(found, placed, machine, timing, measured, as_json=options.format == "json"))
    if options.picture:
        _draw(found, Path(options.picture))


def _timing(options: Any) -> Timing | None:
    given = {name: getattr(options, name) for name in ("latency", "bandwidth", "compute")}
    if all(value is None for value in given.values()):
        return None
    for name, value in given.items():
        if value is None or not (value > 0 or (name == "latency" and value == 0)):
            raise ConfigurationError(
                f"{name} is {value}: weak scaling takes a latency (microseconds), a bandwidth (GB a second) and the seconds"
                " that a micro-batch computes, all above 0."
            )
    return Timing(Link(given["latency"] * 1e-6, given["bandwidth"] * 1e9), given["compute"])


def _draw(found: DryRun, path: Path) -> None:
    try:
        from lightning_scale.plan.schedule_picture import draw
    except ImportError:
        print(f"no picture {path}: matplotlib is not installed (pip install matplotlib).", file=stderr)
        return
    draw(found.schedule, path)
    print(f"picture: {path}", file=stderr)
