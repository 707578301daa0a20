"""How the programs of one launch take turns, and finish a layer between its two passes; see `order`.

Pass 2 of a layer waits for its ratio. In the order of the items nothing can wait for ever; but a compiler or a device that
breaks the order would hang a training without a word. So every wait is bounded: a program that gives up leaves its weights as
they are and writes its layer's number into a flag in the host's memory, which later steps read without waiting.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.backends.choice import interpreted
from lightning_scale.optim.backends.triton.chunks import Chunks
from lightning_scale.optim.layout import Layout

# A look takes about a microsecond, and pass 1 of a layer is waited for some hundred of them.
ATTEMPTS = 1 << 22
# The interpreter runs one program after the other: what is not there at the first look will never be.
INTERPRETED_ATTEMPTS = 2

one_launch_fails: set[torch.device] = set()
"""Devices on which waiting inside a launch was seen to fail: LAMB and LARS take two launches there."""


def attempts() -> int:
    """How often a program looks for a ratio before it gives up."""
    return INTERPRETED_ATTEMPTS if interpreted() else ATTEMPTS


def counters(layout: Layout, device: torch.device) -> Tensor:
    """[layers + 2] int32, zeros: chunks of each layer that have been through pass 1 (one more when its ratio is known); how many
    items were taken; whether a program of this launch has given up."""
    return torch.zeros(len(layout.layers) + 2, dtype=torch.int32, device=device)


def gave_up(layout: Layout, device: torch.device) -> Tensor:
    """`Layout.gave_up` of a device."""
    if device not in layout.gave_up:
        layout.gave_up[device] = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
    return layout.gave_up[device]


@triton.jit
def next_item(order, taken):  # type: ignore[no-untyped-def]
    """The next item that nobody has taken. The counter decides, for programs need not start in their order."""
    return tl.load(order + tl.atomic_add(taken, 1, sem="relaxed"))


@triton.jit
def is_last(done, layer, first):  # type: ignore[no-untyped-def]
    """Say that one chunk of a layer has been through pass 1; whether it was the last. What all have stored is seen then."""
    tl.debug_barrier()
    before = tl.atomic_add(done + layer, 1, sem="acq_rel")
    tl.debug_barrier()
    return before == tl.load(first + layer + 1) - tl.load(first + layer) - 1


@triton.jit
def open_second_pass(done, layer):  # type: ignore[no-untyped-def]
    """Say that a layer's ratio is known."""
    tl.debug_barrier()
    tl.atomic_add(done + layer, 1, sem="release")


@triton.jit
def ratio_is_known(done, layer, first, layers, attempts, gave_up):  # type: ignore[no-untyped-def]
    """Wait until a layer's ratio is known, and say whether it is: not where ``looks`` did not do, or another program of this
    launch has given up."""
    chunks = tl.load(first + layer + 1) - tl.load(first + layer)
    seen = tl.atomic_add(done + layer, 0, sem="acquire")
    left = attempts
    while (seen <= chunks) & (left > 0):
        seen = tl.atomic_add(done + layer, 0, sem="acquire")
        # By an atomic operation, whose result all threads of a program share: of a load each could see another number, and they
        # would not leave the loop together.
        left = tl.where(tl.atomic_add(done + layers + 1, 0, sem="relaxed") != 0, 0, left - 1)
    if seen <= chunks:
        tl.store(done + layers + 1, 1)
        tl.store(gave_up, layer + 1)
    tl.debug_barrier()
    return seen > chunks


ORDERED_CHUNK = 1 << 12
"""Elements of one item: small, since what is being worked on takes its share of the cache."""

LAG = 1 << 21
"""Elements that pass 1 goes ahead before pass 2 of a layer begins: about what a large GPU works on at a time, so that
pass 2 rarely waits, and float32 weights and moments of which stay in 50 MB of cache."""


def order_of(layout: Layout, chunks: Chunks, lag: int = LAG) -> Tensor:
    """[2 · chunks] int32: c for pass 1 of chunk c, -1 - c for its pass 2.

    Layers follow one another in pass 1; pass 2 of a layer begins when pass 1 is ``lag`` elements past its end, and goes
    backwards, for what was seen last is what a cache still holds.
    """
    key = ("order", chunks.tensor.device, chunks.count, lag)
    if key not in layout.cache:
        layout.cache[key] = torch.tensor(_order(chunks, lag), dtype=torch.int32, device="cpu").to(chunks.tensor.device)
    order: Tensor = layout.cache[key]
    return order


def _order(chunks: Chunks, lag: int) -> list[int]:
    first, lengths = chunks.first.tolist(), chunks.length.tolist()
    order: list[int] = []
    waiting: list[tuple[int, int]] = []  # layers in pass 1, with the elements after which their pass 2 begins
    seen = 0
    for layer in range(len(first) - 1):
        while waiting and waiting[0][1] <= seen:
            order += _backwards(first, waiting.pop(0)[0])
        order += range(first[layer], first[layer + 1])
        seen += sum(lengths[first[layer] : first[layer + 1]])
        waiting.append((layer, seen + lag))
    for layer, _ in waiting:
        order += _backwards(first, layer)
    return order


def _backwards(first: list[int], layer: int) -> list[int]:
    return [-1 - chunk for chunk in reversed(range(first[layer], first[layer + 1]))]
