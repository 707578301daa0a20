"""State that another library's optimizer has given, an older version of this one, or an optimizer of other precision.

What means the same is taken, whatever its form; everything else is refused where it is loaded, and not at a later step:

==================  ================================================================================================
of                  what is taken
==================  ================================================================================================
torch               Adam's and AdamW's moments and steps, by LAMB, LAMB8bit and AdamW8bit; SGD's momentum, by SGD8bit
bitsandbytes        the same under its own names, ``state1`` and ``state2``: in 32 bits, or in blocks of 8
apex, timm          Adam's and LAMB's moments; they keep the step count in the parameter groups
an older version    options that its groups do not have are the optimizer's own
==================  ================================================================================================

The momentum of LARS has the trust ratio in it, and torch's has not: neither optimizer takes the other's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.dtensor import is_sharded, like, local
from lightning_scale.optim.quantization import BLOCK, block_count, quantize
from lightning_scale.optim.state.moments import CODES, QuantizedMoment, absmax_key
from lightning_scale.optim.state.sharded_moments import rows_of

_OWN = {"master_weights", "exclude_1d", "decay_1d", "layer_adaptation", "skipped_steps"}
"""Options of a parameter group that only this package's optimizers have."""
_OF_LARS = {"trust_norm", "trust_coefficient", "lr_in_momentum"}
_PACKED = "__bnb_optimizer_quant_state__"
_AT_ONCE = 1 << 20
"""Elements that are rounded to 8 bits at a time: whole blocks, and little memory beside the state's own."""


def is_own(state_dict: Mapping[str, Any]) -> bool:
    """Return whether an optimizer of this package gave a state_dict, of whichever version."""
    return "skipped_steps" in state_dict or any(not _OWN.isdisjoint(group) for group in state_dict["param_groups"])


def completed(group: Mapping[str, Any], own: Mapping[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """Return a saved parameter group with the options that it lacks.

    Args:
        group: The saved group.
        own: The optimizer's group in its place, which has all options.
        options: The names of the options.
    """
    found = dict(group)
    if "momentum" in own and "momentum" not in group and "betas" in group:  # bitsandbytes' SGD
        found["momentum"], found["dampening"] = group["betas"]
    return {**{key: own[key] for key in options if key in own}, **found}


def refuse_other_momentum(name: str, takes_lars: bool, state_dict: Mapping[str, Any]) -> None:
    """Raise a ValueError for a momentum of LARS' that is given to SGD, or the other way round."""
    of_lars = any(not _OF_LARS.isdisjoint(group) for group in state_dict["param_groups"])
    states = [state for state in state_dict["state"].values() if isinstance(state, Mapping)]
    if of_lars != takes_lars and any(
        state.get(k) is not None for state in states for k in ("momentum_buffer", "state1")
    ):
        raise ValueError(
            f"the momentum in this state_dict is {'LARS' if of_lars else 'SGD'}'s, and {name}'s is another:"
            f" {'SGD' if of_lars else 'LARS'} keeps it {'without' if of_lars else 'with'} the trust ratio. Load the state of"
            " the same kind of optimizer, or begin without one."
        )


def translated(
    name: str, p: Tensor, state: Mapping[str, Any], expected: Mapping[str, Tensor], group: Mapping[str, Any], own: bool
) -> dict[str, Any]:
    """Return the state of a parameter under the names that steps know, with its step count as they take it.

    Args:
        name: The optimizer's name.
        p: The parameter.
        state: Its loaded state.
        expected: The state that it has before its first step.
        group: The saved parameter group.
        own: Whether an optimizer of this package gave the state.

    Raises:
        ValueError: For state that means something else, or lacks a part.
    """
    found = dict(state)
    if not own:
        found |= found.pop(_PACKED, {})
        found = {key: value for key, value in found.items() if value is not None}
        if "state1" in found:
            found = _of_bitsandbytes(name, p, found, expected)
    moments = [key for key in expected if key in CODES]
    if not moments or not found or found.keys() == {"master"} or (not own and found.keys() == {"step"}):
        return found
    missing = [key for key in moments if key not in found]
    others = [key for key, value in found.items() if _is_large(value) and key not in (*expected, "master")]
    if missing or (others and not own):
        keys = ", ".join(map(str, sorted(found, key=str)))
        raise ValueError(
            f"the state of a parameter of shape {tuple(p.shape)} has {keys} in this state_dict, and {name} keeps"
            f" {', '.join(expected)}: load the state of the same kind of optimizer, or torch's"
            f" {'SGD' if 'momentum_buffer' in expected else 'AdamW'}, or begin without one."
        )
    if "step" in expected:
        count = found.get("step", group.get("step"))
        if count is None and "momentum_buffer" in expected:
            count = 1  # torch's SGD keeps none; after the first step it makes no difference
        found["step"] = _step(name, p, count)
    return found


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1


def _step(name: str, p: Tensor, count: Any) -> Tensor:
    if isinstance(count, Tensor) and count.numel() == 1 and not count.is_complex():
        return count.detach().reshape(()).to(torch.float32)
    if isinstance(count, Real):
        return torch.tensor(float(count), dtype=torch.float32, device="cpu")
    has = "no step count" if count is None else f"the step count {count!r}"
    raise ValueError(
        f"the state of a parameter of shape {tuple(p.shape)} has {has} in this state_dict, and {name} needs one for its"
        ' moments: write the number of steps that were taken as the parameter\'s "step".'
    )


def _of_bitsandbytes(name: str, p: Tensor, state: dict[str, Any], expected: Mapping[str, Tensor]) -> dict[str, Any]:
    keys = [key for key in expected if key in CODES]
    found = {"step": state["step"]} if "step" in state else {}
    for number, key in enumerate(keys, start=1):
        value, absmax = state.get(f"state{number}"), state.get(f"absmax{number}")
        if value is None:
            continue
        if value.dtype == torch.uint8:
            if absmax is None:
                raise ValueError(
                    f"the state of a parameter of shape {tuple(p.shape)} is bitsandbytes' in 8 bits without blocks, which"
                    f" {name} cannot read: load one that was made with block_wise=True, or begin without one."
                )
            blocks = absmax.numel()
            size = next((n for n in (256, 2048, 4096) if -(-value.numel() // n) == blocks), 0)
            if not size:
                raise ValueError(
                    f"the state of a parameter of shape {tuple(p.shape)} has {blocks} scales for {value.numel()} codes of"
                    f" bitsandbytes', which are no blocks of 256, 2048 or 4096: load the state of the same parameters."
                )
            numbers = state[f"qmap{number}"].float()[value.reshape(-1).int()]
            scales = absmax.float().repeat_interleave(size)[: value.numel()]
            value = (numbers * scales).view(value.shape)
        found[key] = value
    if f"state{len(keys) + 1}" in state:
        found[f"state{len(keys) + 1}"] = state[f"state{len(keys) + 1}"]  # which is refused
    return found


def in_precision(p: Tensor, state: dict[str, Any], expected: Mapping[str, Tensor]) -> set[int]:
    """Bring a parameter's moments to the dtypes that they belong in: from other precisions, also to 8 bits.

    Args:
        p: The parameter.
        state: Its state, which is changed in place.
        expected: The state that it would have before its first step, for dtypes and shapes.

    Returns:
        The ids of the tensors that were made here.
    """
    made = []
    for key in CODES:
        value, belongs = state.get(key), expected.get(key)
        if not isinstance(value, Tensor) or belongs is None or value.dtype == belongs.dtype:
            continue
        if not value.is_floating_point() or local(value).shape != belongs.shape:
            continue  # which is refused
        if belongs.dtype == torch.uint8:
            state[key], state[absmax_key(key)] = in_eight_bits_of(p, key, value)
            made += [state[key], state[absmax_key(key)]]
        else:
            state[key] = value.detach().to(belongs.dtype)
            made.append(state[key])
    return set(map(id, made))


def in_eight_bits_of(p: Tensor, key: str, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return a whole parameter's moment, or this rank's rows of it, as codes and scales."""
    own = local(value).detach()
    start = rows_of(p).start if is_sharded(p) else 0
    flat = own.contiguous().view(-1)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=own.device)
    absmax = torch.empty(block_count(start, len(flat)), dtype=torch.float32, device=own.device)
    done = 0
    while done < len(flat):
        here = slice(done, done + _AT_ONCE - (start + done) % _AT_ONCE)
        first = (start + done) // BLOCK - start // BLOCK
        codes[here], scales = quantize(flat[here].float(), CODES[key], start + done)
        absmax[first : first + len(scales)] = scales
        done = here.stop
    return like(p, codes.view(own.shape)), absmax


def from_eight_bits_of(p: Tensor, key: str, state: Mapping[str, Tensor]) -> Tensor:
    """Return the float32 numbers of a moment in 8 bits, of a whole parameter or of this rank's rows of it."""
    codes = local(state[key])
    start = rows_of(p).start if is_sharded(p) else 0
    flat = QuantizedMoment(codes.contiguous().view(-1), local(state[absmax_key(key)]), CODES[key], start).read()
    return like(p, flat.view(codes.shape))
