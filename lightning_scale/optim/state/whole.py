"""Optimizer state by the name of its layer, whole, whatever layout it was made in or is to be used in.

A layer's state in this form has the entries that an unsharded run keeps, in the layer's shape: so a file of it is what DDP
saves. 8-bit codes are those that were stored. Where an edge between two ranks had cut a block of codes in two with a scale
each, ``<key>_cut_starts`` (int64) and ``<key>_cut_absmax`` (float32) say where in the layer the further scales begin;
``<key>_absmax`` holds the scale that each block begins with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.layout import LayerInfo, Layout, Run
from lightning_scale.optim.quantization import BLOCK, block_count, blocks, with_one_scale
from lightning_scale.optim.state.moments import (
    CODES,
    Moment,
    PlainMoment,
    QuantizedMoment,
    absmax_key,
    moments,
    small_key,
)
from lightning_scale.optim.state.sharded_moments import codes_key, scales_key

STEP = "step"
BY_LAYER = "layer_{}"
"""Beside a number of a flat tensor's: the same for each layer of its layout, 1-D, where layers have missed steps."""
_STEPS = BY_LAYER.format(STEP)


def kinds(layout: Layout, state: dict[str, Tensor], eight_bit_from: float) -> dict[str, list[Moment]]:
    """Return what each run holds of every kind of state that has elements, as views.

    Args:
        layout: The layout of one local tensor.
        state: The tensor's state: tensors of its own size, moments as `lightning_scale.optim.state.moments` keeps them, and
            ``step``.
        eight_bit_from: The number of elements from which on a layer's moments are in 8 bits.
    """
    beside = {STEP, _STEPS} | {of(key) for key in CODES for of in (absmax_key, small_key)}
    found: dict[str, list[Moment]] = {}
    for key in state.keys() - beside:
        if state[key].dtype == torch.uint8:
            found[key] = moments(key, layout, [state], torch.float32, eight_bit_from)
        else:
            if not state[key].is_contiguous():
                state[key] = state[key].contiguous()
            flat = state[key].view(-1)
            found[key] = [PlainMoment(flat[s.tensor_start : s.tensor_start + s.length]) for s in layout.runs]
    return dict(sorted(found.items()))


CUT_STARTS = "{}_cut_starts"
CUT_ABSMAX = "{}_cut_absmax"


@dataclass(frozen=True)
class Scales:
    """The scales of a layer, as runs of elements that have one scale each. At least one run begins with every block.

    Args:
        starts: The first element of each run, counted in the layer: int64, 1-D, ascending.
        absmax: The scale of each run: float32, 1-D.
    """

    starts: Tensor
    absmax: Tensor

    @property
    def cut(self) -> Tensor:
        """Which of the runs begin inside a block."""
        return self.starts % BLOCK != 0

    def entries(self, key: str) -> dict[str, Tensor]:
        """Return the entries that a layer's whole state has for them; the module says which."""
        found = {absmax_key(key): self.absmax[~self.cut]}
        if self.cut.any():
            found[CUT_STARTS.format(key)] = self.starts[self.cut]
            found[CUT_ABSMAX.format(key)] = self.absmax[self.cut]
        return found

    def at(self, elements: Tensor) -> Tensor:
        """Return the scale of each of these elements (their numbers: int64, 1-D)."""
        return self.absmax[torch.searchsorted(self.starts, elements, right=True) - 1]


def from_shards(places: Sequence[tuple[int, int]], absmax: Sequence[Tensor]) -> Scales:
    """Return the scales of pieces that follow one another.

    Args:
        places: The first element and the length of each piece.
        absmax: For each piece, the scale of every block that it has elements of.
    """
    return _merged(torch.cat([_starts(*place) for place in places]), torch.cat([a.cpu() for a in absmax]))


def from_state(absmax: Tensor, cut_starts: Tensor | None, cut_absmax: Tensor | None) -> Scales:
    """Return the scales that a layer's whole state has; the module says how it keeps them."""
    starts = torch.arange(len(absmax), dtype=torch.int64) * BLOCK
    if cut_starts is None or cut_absmax is None:
        return Scales(starts, absmax.cpu())
    starts = torch.cat([starts, cut_starts.cpu()])
    order = starts.argsort()
    return Scales(starts[order], torch.cat([absmax.cpu(), cut_absmax.cpu()])[order])


def from_rows(scales: Tensor, length: int) -> Scales:
    """Return the scales of a layer that are written row by row (see `lightning_scale.optim.state.sharded_moments`).

    Args:
        scales: The scales, [rows, columns] float32.
        length: How many elements a row has.
    """
    rows, columns = scales.shape
    row = torch.arange(rows, dtype=torch.int64)[:, None] * length
    block = row // BLOCK + torch.arange(columns, dtype=torch.int64)
    touched = block * BLOCK < row + length
    return _merged(torch.maximum(row, block * BLOCK)[touched], scales.cpu()[touched])


def _starts(start: int, length: int) -> Tensor:
    """Return the first element of each block, or part of one, that these elements lie in."""
    first = start // BLOCK
    starts = torch.arange(first, first + block_count(start, length), dtype=torch.int64) * BLOCK
    return starts.clamp_(min=start)


def _merged(starts: Tensor, absmax: Tensor) -> Scales:
    """Return the scales without the cuts whose two sides have one scale."""
    same = torch.zeros_like(starts, dtype=torch.bool)
    same[1:] = (starts[1:] % BLOCK != 0) & (absmax[1:] == absmax[:-1])
    return Scales(starts[~same], absmax[~same])


@dataclass(frozen=True)
class Shard:
    """What one rank holds of a layer's state: a run of its elements.

    Args:
        start: The number of the first element, counted in the layer row by row.
        length: How many elements there are.
        values: Moments and master weights by key, 1-D of that length, on the CPU; codes where they are in 8 bits.
        scales: For values in 8 bits, by the same key, the scale of each block that the run has elements of: float32.
        numbers: State that has no elements, which is the step count.
    """

    start: int
    length: int
    values: dict[str, Tensor]
    scales: dict[str, Tensor]
    numbers: dict[str, Tensor]


def shards(layout: Layout, state: Mapping[str, Tensor], eight_bit_from: float) -> list[tuple[str, Shard]]:
    """Return copies of a local tensor's state, with the names of the layers that have elements in it.

    Args:
        layout: The layout of one local tensor.
        state: The tensor's state.
        eight_bit_from: The number of elements from which on a layer's moments are in 8 bits.
    """
    held = kinds(layout, dict(state), eight_bit_from)
    found = []
    for i, run in enumerate(layout.runs):
        step = state[_STEPS][run.layer] if _STEPS in state else state.get(STEP)
        numbers = {STEP: _kept(step)} if step is not None else {}
        values: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for key, parts in held.items():
            part = parts[i]
            if isinstance(part, QuantizedMoment):
                values[key], scales[key] = _kept(part.codes), _kept(part.absmax)
            else:
                values[key] = _kept(part.values)
        piece = Shard(run.layer_start, run.length, values, scales, numbers)
        found.append((layout.layers[run.layer].name, piece))
    return found


def _kept(t: Tensor) -> Tensor:
    return t.detach().cpu().clone()


def whole(name: str, shape: Sequence[int], parts: Sequence[Shard]) -> dict[str, Tensor]:
    """Return a layer's whole state, as an unsharded run keeps it; the module says what becomes of blocks that were cut.

    Args:
        name: The layer's name, for errors.
        shape: The layer's shape.
        parts: What all ranks hold of it, in any order. Replicas may bring the same part more than once.

    Raises:
        ValueError: Where elements are missing, or ranks disagree on what state there is.
    """
    ordered = _tiling(name, torch.Size(shape).numel(), parts)
    first = ordered[0]
    if any((p.values.keys(), p.scales.keys()) != (first.values.keys(), first.scales.keys()) for p in ordered):
        raise ValueError(f"the ranks keep other kinds of state of {name!r}: {[sorted(p.values) for p in ordered]}.")
    state = dict(first.numbers)
    for key in first.values:
        state[key] = torch.cat([p.values[key] for p in ordered]).view(tuple(shape))
        if key in first.scales:
            runs = from_shards([(p.start, p.length) for p in ordered], [p.scales[key] for p in ordered])
            state |= runs.entries(key)
    return state


def _tiling(name: str, numel: int, parts: Sequence[Shard]) -> list[Shard]:
    """Return the parts in order, each place once."""
    if numel == 0:
        return list(parts[:1]) or _missing(name, 0, numel)
    by_start = {p.start: p for p in parts if p.length}
    ordered = [by_start[start] for start in sorted(by_start)]
    here = 0
    for p in ordered:
        if p.start != here:
            break
        here += p.length
    return ordered if here == numel and sum(p.length for p in ordered) == numel else _missing(name, here, numel)


def _missing(name: str, here: int, numel: int) -> list[Shard]:
    raise ValueError(f"the ranks' shares of {name!r} do not follow one another from element {here} of {numel} on.")


def fill(
    layout: Layout, state: dict[str, Tensor], wholes: Mapping[str, Mapping[str, Tensor]], eight_bit_from: float
) -> None:
    """Write the layers' state into a local tensor's, where its elements lie.

    8-bit codes and scales come back as they were, but for the blocks in which several runs of other scales meet: those are
    quantized anew, with the scale of all of their elements that lie here.

    Args:
        layout: The layout of one local tensor.
        state: The tensor's state, as the optimizer makes it before the first step. It is changed in place.
        wholes: The whole state of each layer, by name; empty for a layer that has taken no step.
        eight_bit_from: The number of elements from which on a layer's moments are in 8 bits.

    Raises:
        ValueError: Where a layer is missing, or has not the kinds of state, the sizes and the dtypes that belong here.
    """
    here = [(s, layout.layers[s.layer]) for s in layout.runs]
    for _, layer in here:
        if layer.name not in wholes:
            raise ValueError(f"there is no state of {layer.name!r}: take it from a run of the same model.")
    for key, held in kinds(layout, state, eight_bit_from).items():
        for (run, layer), moment in zip(here, held, strict=True):
            if not wholes[layer.name]:
                _clear(moment)
                continue
            whole = _entry(key, layer, wholes[layer.name])
            own = whole.contiguous().view(-1)[run.layer_start : run.layer_start + run.length]
            if isinstance(moment, QuantizedMoment):
                _same_dtype(key, layer, whole, moment.codes)
                _code(moment, own, _scales(key, layer, wholes[layer.name]))
            else:
                _same_dtype(key, layer, whole, moment.values)
                moment.values.copy_(own)
    if STEP in state:
        _steps(layout, state, wholes)


def _clear(moment: Moment) -> None:
    if isinstance(moment, QuantizedMoment):
        moment.codes.fill_(moment.code.zero)
        moment.absmax.zero_()
    else:
        moment.values.zero_()


def _code(moment: QuantizedMoment, codes: Tensor, scales: Scales) -> None:
    """Write the codes and scales of a run, and round blocks in which several scales meet anew."""
    start, length = moment.start, len(codes)
    moment.codes.copy_(codes)
    firsts = torch.tensor([start + first for first, _ in blocks(start, length)], dtype=torch.int64)
    moment.absmax.copy_(scales.at(firsts))
    inside = scales.starts[scales.cut & (scales.starts > start) & (scales.starts < start + length)]
    for block in sorted({begin // BLOCK for begin in inside.tolist()}):
        begin, end = max(start, block * BLOCK), min(start + length, (block + 1) * BLOCK)
        part = slice(begin - start, end - start)
        again, absmax = with_one_scale(codes[part].cpu(), scales.at(torch.arange(begin, end)), moment.code, begin)
        moment.codes[part] = again.to(moment.codes.device)
        moment.absmax[block - start // BLOCK] = absmax[0]


def _scales(key: str, layer: LayerInfo, whole: Mapping[str, Tensor]) -> Scales:
    absmax = _entry(absmax_key(key), layer, whole)
    if len(absmax) != -(-layer.numel // BLOCK):
        raise ValueError(f"{absmax_key(key)} of {layer.name!r} has {len(absmax)} scales for {layer.numel} elements.")
    return from_state(absmax, whole.get(CUT_STARTS.format(key)), whole.get(CUT_ABSMAX.format(key)))


def _entry(key: str, layer: LayerInfo, whole: Mapping[str, Tensor]) -> Tensor:
    value = whole.get(key)
    if value is None:
        raise ValueError(
            f"there is no {key} of {layer.name!r}, only {', '.join(sorted(whole)) or 'nothing'}: take the state of the same"
            " kind of optimizer."
        )
    if not key.endswith("_absmax") and value.numel() != layer.numel:
        raise ValueError(f"{key} of {layer.name!r} has {value.numel()} elements, and the layer {layer.numel}.")
    return value


def _same_dtype(key: str, layer: LayerInfo, whole: Tensor, target: Tensor) -> None:
    if whole.dtype != target.dtype:
        raise ValueError(
            f"{key} of {layer.name!r} is {whole.dtype}, and this optimizer keeps it as {target.dtype}: take the state of the"
            " same kind of optimizer."
        )


def _steps(layout: Layout, state: dict[str, Tensor], wholes: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the step counts of the layers that have elements here; one for all where they have taken the same steps."""
    counts = {}
    for run in layout.runs:
        layer = layout.layers[run.layer]
        counts[run.layer] = float(_entry_number(layer, wholes[layer.name])) if wholes[layer.name] else 0.0
    state.pop(_STEPS, None)
    if counts:
        state[STEP].fill_(max(counts.values()))
    if len(set(counts.values())) > 1:
        state[_STEPS] = state[STEP].repeat(len(layout.layers))
        for number, count in counts.items():
            state[_STEPS][number] = count


def _entry_number(layer: LayerInfo, whole: Mapping[str, Tensor]) -> Tensor:
    if STEP not in whole:
        raise ValueError(f"there is no step count of {layer.name!r}: take the state of the same kind of optimizer.")
    return whole[STEP]


def mended(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's whole state with one scale for each block, for a run where layers are whole."""
    beside = {form.format(key) for key in CODES for form in (CUT_STARTS, CUT_ABSMAX)}
    own = {key: value for key, value in state.items() if key not in beside}
    if len(own) < len(state):
        (codes, *_) = [own[key] for key in CODES if CUT_STARTS.format(key) in state]
        layer = LayerInfo("", codes.numel(), codes.dim())
        layout = Layout((layer,), (Run(0, 0, 0, 0, codes.numel()),), (codes.numel(),))
        own = {key: value.clone() if isinstance(value, Tensor) else value for key, value in own.items()}
        fill(layout, own, {"": state}, eight_bit_from=0)
    return own


def by_blocks(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's whole state as `fill` takes it, from one whose scales are written row by row (`sharded_moments`)."""
    found = dict(state)
    for key in CODES:
        codes, scales = found.pop(codes_key(key), None), found.pop(scales_key(key), None)
        if codes is not None and scales is not None:
            length = codes.numel() // max(1, len(codes))
            found |= {key: codes, **from_rows(scales, length).entries(key)}
    return found
