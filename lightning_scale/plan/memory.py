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
    def numel(self) -> int:
        return sum(map(math.prod, self.trained)) + self.frozen


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
    numels = [math.prod(shape) for shape in model.trained]
    if strategy == "ddp" or strategy.startswith("fsdp2"):
        shards = ranks if strategy != "ddp" else 1
        # Rank 0's rows of dimension 0, which are not fewer than any other's.
        parts = [_rows(shape, shards) / max(shape[0], 1) if shape else 1.0 for shape in model.trained]
        own = round(sum(part * n for part, n in zip(parts, numels, strict=True)))
        state = round(sum(part * m for part, m in zip(parts, moments, strict=True)))
        frozen = -(-model.frozen // shards)
        buckets = low * own if strategy == "ddp" and ranks > 1 and not bucket_view else 0
        held = Parts(low * (own + frozen), low * own, state, 4 * own if master and low < 4 else 0, buckets)
        return Memory(Parts(), held) if strategy.endswith("_offload") else Memory(held, Parts(), fixed_buckets=False)
    whole = sum(numels)
    share, state = -(-whole // ranks), -(-sum(moments) // ranks)
    stage, offload = int(strategy[4]), strategy.endswith("_offload")
    bucket = low * bucket_elements
    split = Parts(0, 4 * share, state, 4 * share)  # gradients are added up in float32
    if stage == 3:
        small = sum(n for n in numels if n <= PERSISTENT_ELEMENTS)
        held = replace(split, parameters=low * -(-(whole + model.frozen) // ranks))
        if offload:  # gradients come to the host into one buffer, and are added up in another
            return Memory(Parts(low * small, buckets=bucket), replace(held, gradients=8 * share))
        return Memory(replace(held, parameters=held.parameters + low * small, buckets=bucket), Parts())
    parameters = low * (whole + model.frozen)
    if stage == 1 and not offload:
        # In low precision they are added up in float32 beside (DeepSpeed's BF16_Optimizer), without a bucket.
        gradients = low * whole + (4 * whole if low < 4 else 0)
        return Memory(
            replace(split, parameters=parameters, gradients=gradients, buckets=bucket if low == 4 else 0), Parts()
        )
    if not offload:
        return Memory(replace(split, parameters=parameters, buckets=bucket), Parts())
    largest = low * max(numels, default=0)  # a gradient on its way to the host, there and here
    added = 4 * share  # in float32; stage 2 keeps what it adds up apart where that is the gradients' own precision
    added *= 2 if stage == 2 and low == 4 else 1
    on_host = replace(split, parameters=low * share, gradients=added + largest)
    here = low * whole if stage == 1 else 0
    if low < 4:  # a share is added up in float32 before it goes
        here += 4 * share
    return Memory(Parts(parameters, here + largest, buckets=bucket), on_host)


def largest_model(found: Memory, model: Shapes, device_memory: int) -> int:
    """Parameters of the largest model of this make whose states fit into a device's memory.

    0 where the device holds but what is in use, so that the host decides, and where DeepSpeed's bucket alone does not fit.
    """
    if found.device.gradients == 0:
        return 0
    fixed = found.device.buckets if found.fixed_buckets else 0
    return max(0, int((device_memory - fixed) / (found.device.total - fixed) * model.numel))


def _rows(shape: tuple[int, ...], shards: int) -> int:
    return -(-shape[0] // shards)
