"""What a configuration says of a run's strategy, precision and machine, without building any of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.strategies.zero.refusals import (
    refuse_optimizer,
    refuse_precision,
    refuse_two_clips,
    refuse_unverified_nvme,
)

STRATEGIES = (
    "ddp",
    "fsdp2",
    "fsdp2_offload",
    "zero1",
    "zero1_offload",
    "zero2",
    "zero2_offload",
    "zero3",
    "zero3_offload",
)
"""The strategies that a plan compares, under the names that the fragments in ``strategies/`` have."""

BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's ``reduce_bucket_size``: gradients are copied into a buffer of so many elements, however small the model is."""

_SHORT = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true", "None": "32-true"}


@dataclass(frozen=True)
class Machine:
    """The machine that the run is to be placed on."""

    ranks: int
    ranks_per_node: int
    device_memory: int | None = None
    """The bytes of each device; None where they were not given."""


@dataclass(frozen=True)
class Configured:
    """The strategy and the precision that a configuration names, with those of their options that a plan depends on."""

    strategy: str | None
    """One of `STRATEGIES`; None for any other, which is not planned."""
    precision: str
    replicas: int = 1
    """FSDP2's number of copies of the model that all ranks together hold."""
    param_dtype: str | None = None
    """FSDP2's dtype in which parameters are gathered and layers computed; None for the one that they are kept in."""
    reduce_dtype: str | None = None
    """FSDP2's dtype in which gradients are sent; None for the one that they are computed in."""
    bucket_elements: int = BUCKET_ELEMENTS
    bucket_view: bool = True
    """DDP's ``gradient_as_bucket_view``, which is off unless it is written."""
    gpu: bool = True
    """Whether the run is meant for GPUs: for anything but ``accelerator: cpu``."""
    clip: float = 0.0
    """The Trainer's ``gradient_clip_val``; 0 for none."""
    unverified_nvme: bool = False
    """Whether ZeRO is to offload to NVMe without ``allow_unverified_nvme``. It is planned as offload to the CPU."""


def configured(strategy: Any, precision: Any, accelerator: Any = "auto", clip: float | None = None) -> Configured:
    """Read ``trainer.strategy``, ``precision``, ``accelerator`` and ``gradient_clip_val`` as they are written."""
    return replace(_placed(strategy, precision), gpu=accelerator != "cpu", clip=clip or 0.0)


def _placed(strategy: Any, precision: Any) -> Configured:
    precision = _SHORT.get(str(precision), str(precision))
    if isinstance(strategy, str):
        name = "ddp" if strategy == "auto" or strategy.startswith("ddp") else strategy
        return Configured(name if name in STRATEGIES else None, precision, bucket_view=name != "ddp")
    path, options = str(strategy["class_path"]).rsplit(".", 1)[-1], strategy.get("init_args") or {}
    if path == "FSDP2Strategy":
        offload = "_offload" if options.get("offload_parameters") else ""
        return Configured(
            f"fsdp2{offload}",
            precision,
            int(options.get("replicas") or 1),
            options.get("param_dtype"),
            options.get("reduce_dtype"),
        )
    if path == "ZeROStrategy":
        offload = "_offload" if options.get("offload_optimizer") else ""
        config = options.get("config")
        zero = config.get("zero_optimization", {}) if isinstance(config, dict) else {}
        bucket = int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))
        nvme = "nvme" in (options.get("offload_optimizer"), options.get("offload_parameters"))
        unverified = nvme and not options.get("allow_unverified_nvme")
        name = f"zero{options.get('stage', 2)}{offload}"
        return Configured(name, precision, bucket_elements=bucket, unverified_nvme=unverified)
    view = bool(
        (options.get("dict_kwargs") or {}).get("gradient_as_bucket_view", options.get("gradient_as_bucket_view"))
    )
    return Configured("ddp", precision, bucket_view=view) if path == "DDPStrategy" else Configured(None, precision)


def refusals(found: Configured, optimizers: list[Optimizer]) -> list[str]:
    """Return a sentence for everything that the strategy will refuse when it starts."""
    said = []
    try:
        if found.strategy is not None and found.strategy.startswith("zero"):
            refuse_precision(found.precision)
            for optimizer in optimizers:
                refuse_optimizer(optimizer)
                refuse_two_clips(optimizer, found.clip)
            refuse_unverified_nvme(found.unverified_nvme, allowed=False)
    except ConfigurationError as error:
        said.append(f"This strategy will not run: {error}")
    if found.strategy is not None and found.strategy.startswith("fsdp2") and found.precision.startswith("16"):
        said.append(
            'This strategy will not run: FSDP2Strategy has nothing to scale a float16 loss: write "bf16-mixed".'
        )
    return said
