"""What each device and each host holds of a model under every strategy: parameters, gradients, optimizer state.

Activations are left out, and what is gathered or sent for a moment. Sources: Rajbhandari et al. 2019 (arXiv 1910.02054) for
what ZeRO splits; how often DeepSpeed 0.19.8 and torch 2.13 keep each thing was counted in their memory on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]

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
"""What is compared, under the names that the fragments in ``strategies/`` have."""

BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's ``reduce_bucket_size``: gradients are copied into a buffer of so many elements, however small the model is."""

PERSISTENT_ELEMENTS = 100_000
"""DeepSpeed's ``stage3_param_persistence_threshold``: on stage 3 parameters of so many elements or fewer stay whole."""


@dataclass(frozen=True)
class Parts:
    """Bytes in one memory."""

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    """Moments."""
    master: int = 0
    """The float32 copy of the parameters that the step is computed on."""
    buckets: int = 0
    """What gradients are put into to be sent."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Memory:
    """What one rank holds."""

    device: Parts
    host: Parts
    fixed_buckets: bool = True
    """Whether the buckets are as large for every model."""


@dataclass(frozen=True)
class Shapes:
    """A model, as far as its memory goes.

    Args:
        trained: The shape of each parameter that is trained.
        frozen: The elements of all others together.
    """

    trained: tuple[tuple[int, ...], ...]
    frozen: int = 0

    @property
    def trained_numel(self) -> int:
        return sum(map(math.prod, self.trained))

    @property
    def numel(self) -> int:
        return self.trained_numel + self.frozen


def parameter_bytes(strategy: str, precision: str) -> int:
    """Bytes of one element of the parameters that layers are computed with, as they are kept."""
    if precision.endswith("-true"):
        return {"64": 8, "32": 4}.get(precision.removesuffix("-true"), 2)
    if precision in ("64", "32"):
        return int(precision) // 8
    # "-mixed": autocast keeps float32 parameters; under ZeRO they are of the low precision, and the copy is of float32
    return 2 if strategy.startswith("zero") else 4


def memory(
    strategy: str,
    model: Shapes,
    moments: Sequence[int],
    ranks: int,
    precision: str = "32-true",
    *,
    master: bool = False,
    bucket_elements: int = BUCKET_ELEMENTS,
    bucket_view: bool = True,
) -> Memory:
    """What rank 0 holds at the end of a backward pass, its optimizer's state made.

    Args:
        strategy: One of `STRATEGIES`.
        model: The parameters' shapes.
        moments: Bytes of optimizer state of each trained parameter, whole.
        ranks: How many ranks share what the strategy shares.
        precision: The Trainer's.
        master: Whether the optimizer keeps a float32 copy of low-precision parameters (not under ZeRO, which has its own).
        bucket_elements: DeepSpeed's ``reduce_bucket_size``.
        bucket_view: DDP's ``gradient_as_bucket_view``; without, buckets hold a second copy of all gradients.
    """
    low = parameter_bytes(strategy, precision)
    if strategy == "ddp":
        own = model.trained_numel
        held = Parts(low * model.numel, low * own, sum(moments), 4 * own if master and low < 4 else 0)
        return Memory(replace(held, buckets=0 if bucket_view or ranks == 1 else low * own), Parts(), False)
    if strategy.startswith("fsdp2"):
        held = _fsdp2(model, moments, ranks, low, master)
        return Memory(Parts(), held) if strategy.endswith("_offload") else Memory(held, Parts(), False)
    stage, offload = int(strategy[4]), strategy.endswith("_offload")
    split, bucket = _split(model, moments, ranks), low * bucket_elements
    if stage == 3:
        return _zero3(offload, model, split, ranks, low, bucket)
    return (_zero12_offload if offload else _zero12)(stage, model, split, low, bucket)


def _fsdp2(model: Shapes, moments: Sequence[int], ranks: int, low: int, master: bool) -> Parts:
    """Rank 0's rows of dimension 0, which are not fewer than any other's."""
    parts = [-(-shape[0] // ranks) / max(shape[0], 1) if shape else 1.0 for shape in model.trained]
    own = round(sum(part * math.prod(shape) for part, shape in zip(parts, model.trained, strict=True)))
    state = round(sum(part * m for part, m in zip(parts, moments, strict=True)))
    frozen = -(-model.frozen // ranks)
    return Parts(low * (own + frozen), low * own, state, 4 * own if master and low < 4 else 0)


def _split(model: Shapes, moments: Sequence[int], ranks: int) -> Parts:
    """What a rank keeps of its share under ZeRO; gradients are added up in float32, as the copy is."""
    share = 4 * -(-model.trained_numel // ranks)
    return Parts(0, share, -(-sum(moments) // ranks), share)


def _zero3(offload: bool, model: Shapes, split: Parts, ranks: int, low: int, bucket: int) -> Memory:
    small = low * sum(n for n in map(math.prod, model.trained) if n <= PERSISTENT_ELEMENTS)
    own = low * -(-model.numel // ranks)
    if offload:  # gradients come to the host into one buffer, and are added up in another
        return Memory(Parts(small, buckets=bucket), replace(split, parameters=own, gradients=2 * split.gradients))
    return Memory(replace(split, parameters=own + small, buckets=bucket), Parts())


def _zero12(stage: int, model: Shapes, split: Parts, low: int, bucket: int) -> Memory:
    held = replace(split, parameters=low * model.numel, buckets=bucket)
    if stage == 2:
        return Memory(held, Parts())
    # Low precision: gradients are added up in float32 beside (DeepSpeed's BF16_Optimizer), without a bucket.
    beside = 4 if low < 4 else 0
    return Memory(
        replace(held, gradients=(low + beside) * model.trained_numel, buckets=0 if beside else bucket), Parts()
    )


def _zero12_offload(stage: int, model: Shapes, split: Parts, low: int, bucket: int) -> Memory:
    largest = low * max(map(math.prod, model.trained), default=0)  # a gradient on its way to the host, there and here
    # In float32; stage 2 keeps what it adds up apart where that is the gradients' own precision.
    added = split.gradients * (2 if stage == 2 and low == 4 else 1)
    here = low * model.trained_numel if stage == 1 else 0
    if low < 4:  # a share is added up in float32 before it goes
        here += split.gradients
    device = Parts(low * model.numel, here + largest, buckets=bucket)
    return Memory(device, replace(split, parameters=low * split.master // 4, gradients=added + largest))


def largest_model(found: Memory, model: Shapes, device_memory: int) -> int:
    """Parameters of the largest model of this make whose states fit into a device's memory.

    0 where the device holds but what is in use, so that the host decides, and where DeepSpeed's bucket alone does not fit.
    """
    if found.device.gradients == 0:
        return 0
    fixed = found.device.buckets if found.fixed_buckets else 0
    return max(0, int((device_memory - fixed) / (found.device.total - fixed) * model.numel))
