"""From layers' whole state to a local tensor's, in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_scale.optim.by_name.kinds import STEP, kinds
from lightning_scale.optim.by_name.scales import CUT_ABSMAX, CUT_STARTS, Scales, from_state
from lightning_scale.optim.codec import BLOCK, blocks, with_one_scale
from lightning_scale.optim.kernels.eight_bit.moment import CodedMoment
from lightning_scale.optim.layout import LayerInfo, Layout
from lightning_scale.optim.moments import absmax_key


def fill(
    layout: Layout, state: dict[str, Tensor], wholes: Mapping[str, Mapping[str, Tensor]], eight_bit_from: int
) -> None:
    """Write the layers' state into a local tensor's, where its elements lie.

    8-bit codes and scales come back as they were, but for the blocks in which several runs of other scales meet: those are
    coded anew, with the scale of all of their elements that lie here.

    Args:
        layout: Of this one tensor.
        state: Its state, as the optimizer makes it before the first step: changed in place.
        wholes: Each layer's whole state, by name.
        eight_bit_from: From which size of a layer on its moments are in 8 bits.

    Raises:
        ValueError: where a layer is missing, or has not the kinds of state, the sizes and the dtypes that belong here.
    """
    here = [(s, layout.layers[s.layer]) for s in layout.segments]
    for _, layer in here:
        if layer.name not in wholes:
            raise ValueError(f"there is no state of {layer.name!r}: take it from a run of the same model.")
    for key, moments in kinds(layout, state, eight_bit_from).items():
        for (segment, layer), moment in zip(here, moments, strict=True):
            whole = _entry(key, layer, wholes[layer.name])
            own = whole.contiguous().view(-1)[segment.layer_start : segment.layer_start + segment.length]
            if isinstance(moment, CodedMoment):
                _same_dtype(key, layer, whole, moment.codes)
                _code(moment, own, _scales(key, layer, wholes[layer.name]))
            else:
                _same_dtype(key, layer, whole, moment.values)
                moment.values.copy_(own)
    if STEP in state:
        _step(state[STEP], [(layer, wholes[layer.name]) for _, layer in here])


def _code(moment: CodedMoment, codes: Tensor, scales: Scales) -> None:
    """Codes and scales of a segment; of blocks with several scales anew."""
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


def _step(step: Tensor, found: list[tuple[LayerInfo, Mapping[str, Tensor]]]) -> None:
    counts = {float(_entry_number(layer, whole)) for layer, whole in found}
    if len(counts) > 1:
        names = ", ".join(repr(layer.name) for layer, _ in found[:3])
        raise ValueError(
            f"{names} and others share one step count here, and have taken {sorted(counts)} steps: a strategy that flattens"
            " parameters cannot go on from there."
        )
    for count in counts:
        step.fill_(count)


def _entry_number(layer: LayerInfo, whole: Mapping[str, Tensor]) -> Tensor:
    if STEP not in whole:
        raise ValueError(f"there is no step count of {layer.name!r}: take the state of the same kind of optimizer.")
    return whole[STEP]
