"""What every kernel does with elements: it finds them by address, a block at a time, reads them as float32, and rounds them
to their own type; and how kernels are compiled and kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import float32, njit, types, uint8, uint16
from numba.core import cgutils

# Of these numba says what they are outside of a kernel.
carray: Any = getattr(numba, "carray")  # noqa: B009
intrinsic: Any = numba.extending.intrinsic

BLOCK = 256
"""Elements that a kernel takes at a time: few, so that a processor works on one block while the next comes from memory."""

# No fast-math: each operation rounds once. The error model of numpy has no test for a division by zero.
inlined: Any = njit(error_model="numpy", forceinline=True)
"""Decorator of what kernels call."""
_summing: Any = njit(error_model="numpy", fastmath={"reassoc"})

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
"""What kernels call a type; one compiled kernel serves all of them."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile at the first call, without the interpreter's lock, and keep the result beside this file, or in the user's cache.

    numba looks at a kernel's own file only, and would go on with what it has kept where a helper in another file has changed:
    so the sources of all kernels are part of what it compares. Where nothing can be written, each process compiles.
    """
    compiled: Any = njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # no folder that can be written
        compiled.enable_caching()
        file: Any = getattr(compiled._cache, "_cache_file", None)
        if not hasattr(file, "_source_stamp"):  # this numba keeps it elsewhere
            return njit(nogil=True, error_model="numpy")(function)
        file._source_stamp = (file._source_stamp, _sources())
    return compiled


@cache
def _sources() -> str:
    folder = Path(__file__).parent
    files = [*sorted(folder.glob("*.py")), folder.parents[1] / "quantization" / "code.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@intrinsic
def _pointer(typing, address):  # type: ignore[no-untyped-def]
    return types.voidptr(address), lambda context, builder, signature, args: builder.inttoptr(
        args[0], cgutils.voidptr_t
    )


@intrinsic
def as_float(typing, bits):  # type: ignore[no-untyped-def]
    """The float32 of these bits."""
    return types.float32(types.uint32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.FloatType()
    )


@intrinsic
def as_bits(typing, x):  # type: ignore[no-untyped-def]
    """A float32's bits."""
    return types.uint32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


@intrinsic
def _from_half(typing, bits):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _to_half(typing, x):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def wide_vectors(typing):  # type: ignore[no-untyped-def]
    """Let a function's loops use 512 bits where there are any: LLVM takes 256 for most of Intel's processors."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own add() knows no such names
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def block_memory(typing):  # type: ignore[no-untyped-def]
    """The address of memory for `BLOCK` numbers of float32, as long as the kernel runs."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.FloatType(), BLOCK))
            memory.align = 64
        return builder.ptrtoint(memory, ir.IntType(64))

    return types.int64(), generate


@intrinsic
def _prefetch(typing, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        number, pointer = ir.IntType(32), cgutils.voidptr_t
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(function, [builder.inttoptr(args[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@intrinsic
def _store_past_cache(typing, target, source):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        line = ir.VectorType(ir.FloatType(), 16).as_pointer()
        store = builder.store(
            builder.load(builder.inttoptr(args[1], line), align=64), builder.inttoptr(args[0], line), align=64
        )
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def _draw(typing, counter, number):  # type: ignore[no-untyped-def]
    """Add to the int64 at an address, as no two threads can at once, and return what it was."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


@inlined
def ascending(turns):  # type: ignore[no-untyped-def]
    """Go through the chunks that this thread draws: the next ones whenever it has done some.

    turns: the address of a counter that threads share; the first chunk; the one after the last; and how many make a turn.
    """
    counter, begin, end, turn = turns
    a = begin + _draw(counter, turn)
    while a < end:
        for c in range(a, min(a + turn, end)):  # noqa: UP028 (numba knows no "yield from")
            yield c
        a = begin + _draw(counter, turn)


@inlined
def descending(turns):  # type: ignore[no-untyped-def]
    """As `ascending`, from the last chunk to the first: what was read last is what the cache still holds."""
    counter, begin, end, turn = turns
    b = end - _draw(counter, turn)
    while b > begin:
        for c in range(b - 1, max(b - turn, begin) - 1, -1):  # noqa: UP028
            yield c
        b = end - _draw(counter, turn)


@inlined
def floats(address, start, stop):  # type: ignore[no-untyped-def]
    """float32 elements where they lie."""
    return carray(_pointer(address + 4 * start), (stop - start,), float32)


@inlined
def prefetch(address, start, stop):  # type: ignore[no-untyped-def]
    """Ask for the block of float32 after this one. By itself a processor sees no further than the end of a page.

    It waits for about sixteen lines at a time: kernels ask for one tensor's block between two loops, not for all at once.
    """
    if stop - start == BLOCK:
        for byte in range(0, 4 * BLOCK, 64):
            _prefetch(address + 4 * stop + byte)


@inlined
def floats_from_memory(address, start, stop):  # type: ignore[no-untyped-def]
    """As `floats`, with the next block asked for."""
    prefetch(address, start, stop)
    return floats(address, start, stop)


@inlined
def kept_floats(address, start, stop, past_cache, buffer):  # type: ignore[no-untyped-def]
    """Where updates are computed that wait for the second pass: where they wait, or in a buffer that `keep` stores."""
    return floats(buffer, 0, stop - start) if past_cache else floats_from_memory(address, start, stop)


@inlined
def keep(address, start, stop, past_cache, buffer):  # type: ignore[no-untyped-def]
    """Store updates past the cache where it cannot hold them until they are needed: it would read all lines only to fill them."""
    if not past_cache:
        return
    target, size = address + 4 * start, 4 * (stop - start)
    if target % 64 == 0 and size % 64 == 0:
        for byte in range(0, size, 64):
            _store_past_cache(target + byte, buffer + byte)
    else:
        out, u = floats(address, start, stop), floats(buffer, 0, stop - start)
        for i in range(out.size):
            out[i] = u[i]


@inlined
def bytes_at(address, start, stop):  # type: ignore[no-untyped-def]
    """uint8 elements where they lie."""
    return carray(_pointer(address + start), (stop - start,), uint8)


@inlined
def _halves(address, start, stop):  # type: ignore[no-untyped-def]
    return carray(_pointer(address + 2 * start), (stop - start,), uint16)


@inlined
def load(address, kind, start, stop, buffer):  # type: ignore[no-untyped-def]
    """Elements as float32: where they lie, or converted into a buffer."""
    if kind == FLOAT32:
        return floats_from_memory(address, start, stop)
    x, out = _halves(address, start, stop), floats(buffer, 0, stop - start)
    if kind == BFLOAT16:
        for i in range(x.size):
            out[i] = as_float(np.uint32(x[i]) << np.uint32(16))
    else:
        for i in range(x.size):
            out[i] = _from_half(x[i])
    return out


@inlined
def load_gradient(address, kind, start, stop, buffer, factor):  # type: ignore[no-untyped-def]
    """Elements times a factor: the clip's, negative uphill. 1 changes no bit."""
    g = load(address, kind, start, stop, buffer)
    if factor == 1:
        return g
    out = floats(buffer, 0, stop - start)
    for i in range(out.size):
        out[i] = g[i] * factor
    return out


@inlined
def _rounded(x, kind):  # type: ignore[no-untyped-def]
    """The bits of a float32 in a type of 16 bits, as torch rounds it."""
    if kind == BFLOAT16:
        b = as_bits(x)
        bits = np.uint16((b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
        return np.uint16(0x7FC0) if x != x else bits
    return _to_half(x)


@inlined
def take_written(w, param, kind, start, stop):  # type: ignore[no-untyped-def]
    """Bring into masters, where they lie, what somebody has written into parameters: what is no longer the rounded master."""
    if kind != BFLOAT16 and kind != FLOAT16:
        return
    x = _halves(param, start, stop)
    others = np.uint16(0)
    if kind == BFLOAT16:
        for i in range(x.size):
            others |= _rounded(w[i], BFLOAT16) ^ x[i]
    else:
        for i in range(x.size):
            others |= _rounded(w[i], FLOAT16) ^ x[i]
    if others != 0:
        for i in range(x.size):
            if _rounded(w[i], kind) != x[i]:
                w[i] = as_float(np.uint32(x[i]) << np.uint32(16)) if kind == BFLOAT16 else _from_half(x[i])


@inlined
def load_weight(tensors, kinds, tensor, start, stop, buffer, looked=False):  # type: ignore[no-untyped-def]
    """Weights as float32; masters after `take_written`, unless this step has looked at them before."""
    weights, params, _, _ = tensors
    w = load(weights[tensor], kinds[0], start, stop, buffer)
    if not looked:
        take_written(w, params[tensor], kinds[1], start, stop)
    return w


@inlined
def store(x, address, kind, start, stop):  # type: ignore[no-untyped-def]
    """Round to a type of 16 bits, as torch does. (float32 elements were changed where they lie.)"""
    if kind == BFLOAT16:
        out = _halves(address, start, stop)
        for i in range(x.size):
            out[i] = _rounded(x[i], BFLOAT16)
    elif kind == FLOAT16:
        out = _halves(address, start, stop)
        for i in range(x.size):
            out[i] = _rounded(x[i], FLOAT16)


@inlined
def _mixed(x):  # type: ignore[no-untyped-def]
    """`rounding.mixed`."""
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@inlined
def _stochastically_rounded(x, index, one, other):  # type: ignore[no-untyped-def]
    """The bits in bfloat16 of a float32: `rounding.stochastically_rounded` by `rounding.random_bits`."""
    noise = _mixed(np.uint32(_mixed(np.uint32(index ^ one)) ^ other)) >> np.uint32(16)
    whole = as_bits(x)
    magnitude = whole & np.uint32(0x7FFFFFFF)
    kept = min(np.uint32((magnitude + noise) >> np.uint32(16)), np.uint32(0x7F7F))
    kept = kept if magnitude < np.uint32(0x7F800000) else np.uint32(0x7F80)
    bits = np.uint16(kept | (whole >> np.uint32(16) & np.uint32(0x8000)))
    return np.uint16(0x7FC0) if x != x else bits


@inlined
def _store_stochastically(x, address, start, stop, key, place):  # type: ignore[no-untyped-def]
    out, first, one, other = _halves(address, start, stop), np.uint32(key[0] + np.uint32(place)), key[1], key[2]
    for i in range(x.size):
        out[i] = _stochastically_rounded(x[i], np.uint32(first + np.uint32(i)), one, other)


@inlined
def store_weight(w, tensors, kinds, tensor, start, stop, chunk, begin):  # type: ignore[no-untyped-def]
    """Store new weights, and round them into parameters whose masters they are.

    chunk: whose elements they are; begin: where it begins in the tensor.
    """
    weights, params, _, keys = tensors
    if keys.size != 0:
        _store_stochastically(w, weights[tensor], start, stop, keys[chunk], start - begin)
    else:
        store(w, weights[tensor], kinds[0], start, stop)
    store(w, params[tensor], kinds[1], start, stop)


@_summing
def squares(x):  # type: ignore[no-untyped-def]
    """Σ x² in float64: it cannot overflow, and is the same whichever thread sums the block."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@_summing
def _squares_of_four(a, b, c, d):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(a.size):
        w, x, y, z = np.float64(a[i]), np.float64(b[i]), np.float64(c[i]), np.float64(d[i])
        total += w * w + x * x + y * y + z * z
    return total


@inlined
def _squares_in_memory(address, size):  # type: ignore[no-untyped-def]
    """As `squares`, of what no cache holds: four streams at a time, for one would wait at the end of each page."""
    q, total = size // 4, 0.0
    for a in range(0, q, BLOCK):
        b = min(a + BLOCK, q)
        total += _squares_of_four(
            floats_from_memory(address, a, b),
            floats_from_memory(address, q + a, q + b),
            floats_from_memory(address, 2 * q + a, 2 * q + b),
            floats_from_memory(address, 3 * q + a, 3 * q + b),
        )
    return total + squares(floats(address, 4 * q, size))


@kernel
def sum_squares(turns, addresses, kind, params, param_kind, chunks, sums):  # type: ignore[no-untyped-def]
    """sums[c] = Σ x² of each chunk: NaN or Inf exactly where an element is. Of masters after `take_written`."""
    _, tensor, start, stop, _, _, _, _ = chunks
    for c in ascending(turns):
        if kind == FLOAT32:
            for a in range(start[c], stop[c] if param_kind >= 0 else start[c], BLOCK):
                b = min(a + BLOCK, stop[c])
                take_written(floats_from_memory(addresses[tensor[c]], a, b), params[tensor[c]], param_kind, a, b)
            sums[c] = _squares_in_memory(addresses[tensor[c]] + 4 * start[c], stop[c] - start[c])
            continue
        buffer = block_memory()
        total = 0.0
        for a in range(start[c], stop[c], BLOCK):
            total += squares(load(addresses[tensor[c]], kind, a, min(a + BLOCK, stop[c]), buffer))
        sums[c] = total


@kernel
def count(steps, found):  # type: ignore[no-untyped-def]
    """found[i] = 1 + the step count at an address, which is one more from now on."""
    for i in range(steps.size):
        step = floats(steps[i], 0, 1)
        step[0] += np.float32(1)
        found[i] = step[0]


@kernel
def finish_layers(begin, end, layer, sums, adapt, bounds, coefficient, lr, larc, found, rate):  # type: ignore[no-untyped-def]
    """The norms, the trust ratio and the rate of each layer of some chunks, whose sums are added in order.

    found: [3, layers]: ‖w‖, ‖u‖ and coefficient · φ(‖w‖) / ‖u‖, clipped (larc: then min(ratio / lr, 1)); 1 where a norm is 0
    or the layer is excluded.
    """
    phi_low, phi_high, low, high = bounds
    c = begin
    while c < end:
        of = layer[c]
        ww = uu = 0.0
        while c < end and layer[c] == of:
            ww += sums[0, c]
            uu += sums[1, c]
            c += 1
        w, u = np.float32(np.sqrt(ww)), np.float32(np.sqrt(uu))
        ratio = np.float32(1)
        if adapt[of] and w > 0 and u > 0:
            ratio = coefficient * min(max(w, phi_low), phi_high) / u
            ratio = min(max(ratio, low), high)
            if larc:
                ratio = np.float32(1) if ratio >= lr else ratio / lr
        found[0, of], found[1, of], found[2, of] = w, u, ratio
        rate[of] = ratio * lr
