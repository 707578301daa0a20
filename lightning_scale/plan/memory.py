"""Works out what each device and each host holds of a model under every strategy: parameters, gradients, optimizer state.

Activations are left out, and what is gathered or sent for a moment. Sources: Rajbhandari et al. 2019 (arXiv 1910.02054) for
what ZeRO splits; how often DeepSpeed 0.19.8 and torch 2.13 keep each thing was counted in their memory on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from lightning_scale.optim.backends.cut import GROUP
from lightning_scale.plan.configuration import BUCKET_ELEMENTS, STRATEGIES, Configured, Machine
from lightning_scale.plan.formatting import size, table
from lightning_scale.plan.optimizer_state import KINDS, keeps_master, kept_updates, named_like, state_bytes, with_dtype

_DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}

PERSISTENT_ELEMENTS = 100_000
"""DeepSpeed's ``stage3_param_persistence_threshold``: on stage 3 parameters of so many elements or fewer stay whole."""

SUB_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's ``sub_group_size``: on stage 3 a rank steps so many elements of its share at a time."""


@dataclass(frozen=True)
class Parts:
    """The bytes that one rank holds in one memory, by what they are for."""

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    """The optimizer's moments."""
    master: int = 0
    """The float32 copy of low-precision parameters that the step is computed on."""
    buckets: int = 0
    """The buffers that gradients are put into to be sent."""
    updates: int = 0
    """The float32 updates that wait between the two passes of a step on a CPU: they are kept from step to step."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Memory:
    """What one rank holds on its device and on its host."""

    device: Parts
    host: Parts
    fixed_buckets: bool = True
    """Whether the buckets have one size for every model."""


@dataclass(frozen=True)
class Shapes:
    """The shapes of a model's parameters.

    Args:
        trained: The shape of each parameter that is trained.
        frozen: The number of elements of all others together.
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
    """Return the bytes of one element of the parameters that layers are computed with, as they are kept."""
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
    updates: Sequence[Sequence[int]] = (),
    on_cpu: bool = False,
) -> Memory:
    """Return what rank 0 holds at the end of a backward pass, after its optimizer has taken its first step.

    Args:
        strategy: One of `STRATEGIES`.
        model: The shapes of the parameters.
        moments: The bytes of optimizer state of each trained parameter, when it is whole.
        ranks: The number of ranks that share what the strategy shares.
        precision: The Trainer's precision.
        master: Whether the optimizer keeps a float32 copy of low-precision parameters (not under ZeRO, which has its own).
        bucket_elements: DeepSpeed's ``reduce_bucket_size``.
        bucket_view: DDP's ``gradient_as_bucket_view``; without it, buckets hold a second copy of all gradients.
        updates: The sizes of the layers whose updates a step on a CPU keeps between its passes, as `kept_updates` gives them.
        on_cpu: Whether the devices are CPUs. With offload the step is always taken on one.
    """
    held = _states(strategy, model, moments, ranks, precision, master, bucket_elements, bucket_view)
    waiting = _waiting(strategy, model, updates, ranks)
    if strategy.endswith("_offload"):
        return replace(held, host=replace(held.host, updates=waiting))
    return replace(held, device=replace(held.device, updates=waiting)) if on_cpu else held


def _waiting(strategy: str, model: Shapes, updates: Sequence[Sequence[int]], ranks: int) -> int:
    """Return the bytes of the updates that wait at once; what other ranks share waits for the norms over all of them."""
    if strategy.startswith("zero"):
        share = -(-model.trained_numel // ranks)
        return 4 * (min(share, SUB_GROUP_ELEMENTS) if strategy[4] == "3" else share) if updates else 0
    if strategy.startswith("fsdp2"):
        return 4 * _own_rows(model, ranks) if updates else 0
    largest = 0
    for sizes in updates:
        together = 0
        for numel in sizes:
            together += numel
            largest = max(largest, together)
            together = together if together < GROUP else 0
    return 4 * largest


def _states(
    strategy: str,
    model: Shapes,
    moments: Sequence[int],
    ranks: int,
    precision: str,
    master: bool,
    bucket_elements: int,
    bucket_view: bool,
) -> Memory:
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
    own = _own_rows(model, ranks)
    state = round(sum(part * m for part, m in zip(_parts_of_rows(model, ranks), moments, strict=True)))
    frozen = -(-model.frozen // ranks)
    return Parts(low * (own + frozen), low * own, state, 4 * own if master and low < 4 else 0)


def _own_rows(model: Shapes, ranks: int) -> int:
    """Count the elements of rank 0's rows of dimension 0, which are not fewer than any other rank's."""
    return round(
        sum(part * math.prod(shape) for part, shape in zip(_parts_of_rows(model, ranks), model.trained, strict=True))
    )


def _parts_of_rows(model: Shapes, ranks: int) -> list[float]:
    """Return which part of each parameter lies at rank 0."""
    return [-(-shape[0] // ranks) / max(shape[0], 1) if shape else 1.0 for shape in model.trained]


def _split(model: Shapes, moments: Sequence[int], ranks: int) -> Parts:
    """Return what a rank keeps of its share under ZeRO; gradients are added up in float32, like the copy."""
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
    """Return the number of parameters of the largest model of this make whose states fit into a device's memory.

    It is 0 where the device holds only what is in use, so that the host decides, and where DeepSpeed's bucket alone does
    not fit.
    """
    if found.device.gradients == 0:
        return 0
    fixed = found.device.buckets if found.fixed_buckets else 0
    return max(0, int((device_memory - fixed) / (found.device.total - fixed) * model.numel))


def shapes_of(model: LightningModule, optimizer: Optimizer) -> Shapes:
    """Return the shapes of the parameters that the optimizer trains, in its order, and the elements of all others."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    known = {id(p) for p in trained}
    frozen = sum(p.numel() for p in model.parameters() if id(p) not in known)
    return Shapes(tuple(tuple(p.shape) for p in trained), frozen)


def by_strategy(shapes: Shapes, optimizer: Optimizer, found: Configured, machine: Machine) -> dict[str, Memory]:
    """Return each rank's memory under every strategy with the run's own optimizer; empty where its state is not known."""
    kept = {}
    for strategy in STRATEGIES:
        stepped = with_dtype(optimizer, _stepped_dtype(strategy, found.precision))
        updates = kept_updates(stepped)
        moments = state_bytes(stepped)
        if moments is None:
            return {}
        kept[strategy] = _memory(strategy, shapes, moments, updates, found, machine, master=keeps_master(optimizer))
    return kept


def by_optimizer(shapes: Shapes, found: Configured, machine: Machine) -> dict[str, dict[str, Memory]]:
    """Return each rank's memory with other optimizers, under every strategy."""
    kept: dict[str, dict[str, Memory]] = {}
    for kind, make in KINDS.items():
        made = {
            dtype: make(named_like(shapes.trained, dtype))
            for dtype in {_stepped_dtype(strategy, found.precision) for strategy in STRATEGIES}
        }
        updates = {dtype: kept_updates(optimizer) for dtype, optimizer in made.items()}
        moments = {dtype: state_bytes(optimizer) for dtype, optimizer in made.items()}
        kept[kind] = {}
        for strategy in STRATEGIES:
            dtype = _stepped_dtype(strategy, found.precision)
            own = moments[dtype]
            assert own is not None, "the optimizers to compare with make their state without memory"
            kept[kind][strategy] = _memory(strategy, shapes, own, updates[dtype], found, machine)
    return kept


def _stepped_dtype(strategy: str, precision: str) -> torch.dtype:
    """Return the dtype of the tensors that an optimizer is given; ZeRO's flat tensors are float32."""
    return torch.float32 if strategy.startswith("zero") else _DTYPES[parameter_bytes(strategy, precision)]


def _memory(
    strategy: str,
    shapes: Shapes,
    moments: Sequence[int],
    updates: Sequence[Sequence[int]],
    found: Configured,
    machine: Machine,
    master: bool = False,
) -> Memory:
    ranks = machine.ranks // found.replicas if strategy.startswith("fsdp2") else machine.ranks
    return memory(
        strategy,
        shapes,
        moments,
        max(ranks, 1),
        found.precision,
        master=master,
        bucket_elements=found.bucket_elements,
        bucket_view=found.bucket_view,
        updates=updates,
        on_cpu=not found.gpu,
    )


def memory_text(
    shapes: Shapes, own: dict[str, Memory], others: dict[str, dict[str, Memory]], found: Configured, machine: Machine
) -> str:
    """Return two tables, by strategy and by optimizer, and a sentence on what they leave out."""
    header = ["", "parameters", "gradients", "moments", "copy", "buckets", "updates", "device", "host, a node"]
    if found.gpu:  # they wait in registers and caches there
        header.remove("updates")
    if machine.device_memory is not None:
        header += ["left", "largest model (parameters)"]
    rows = []
    for strategy, held in own.items():
        device = held.device
        row = [f"{'> ' if strategy == found.strategy else ''}{strategy}"]
        row += [size(n) for n in (device.parameters, device.gradients, device.optimizer, device.master, device.buckets)]
        row += [] if found.gpu else [size(device.updates)]
        row += [size(device.total), size(held.host.total * machine.ranks_per_node)]
        if machine.device_memory is not None:
            left = machine.device_memory - device.total
            largest = largest_model(held, shapes, machine.device_memory)
            row += [size(left) if left >= 0 else "does not fit", f"{largest / 1e6:,.0f} M" if largest else "-"]
        rows.append(row)
    lines = [
        f"{shapes.numel:,} parameters, {found.precision}, {machine.ranks:,} rank{'s' * (machine.ranks > 1)},"
        f" {machine.ranks_per_node} a node"
    ]
    if rows:
        lines += ["Each device, with this run's optimizer:", table([header, *rows], left_from=len(header))]
    else:
        lines.append("What this run's optimizer keeps cannot be told without training.")
    lines += [
        "Each device, by optimizer:",
        table(
            [
                ["", *STRATEGIES],
                *([kind, *(size(m.device.total) for m in kept.values())] for kind, kept in others.items()),
            ],
            left_from=len(STRATEGIES) + 1,
        ),
        "Left out: activations (below), layers that FSDP2 and ZeRO-3 gather for a moment, and what CUDA and its allocator take."
        " What is left of a device is for those.",
    ]
    return "\n".join(lines)
