"""How the programs of one launch take turns, and finish a layer between its two passes; see `order`."""

from __future__ import annotations

import triton
import triton.language as tl


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
def wait_for_ratio(done, layer, first):  # type: ignore[no-untyped-def]
    """Wait until a layer's ratio is known."""
    chunks = tl.load(first + layer + 1) - tl.load(first + layer)
    while tl.atomic_add(done + layer, 0, sem="acquire") <= chunks:
        pass
    tl.debug_barrier()
