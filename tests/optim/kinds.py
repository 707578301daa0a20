"""Every kind of optimizer that the contract tests run over, and small models and gradients for them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_scale import optim
from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit

Make = Callable[..., Any]


def maker(kind: Any, **fixed: Any) -> Make:
    def make(params: Any, **options: Any) -> Any:
        return kind(params, **{"lr": 0.05, "weight_decay": 0.1, **fixed, **options})

    return make


# The models below are small, and the state of small parameters is not in 8 bits: here it is.
class AllLAMB8bit(LAMB8bit):
    _eight_bit_from = 1


class AllLARS8bit(LARS8bit):
    _eight_bit_from = 1


class AllAdamW8bit(AdamW8bit):
    _eight_bit_from = 1


class AllSGD8bit(SGD8bit):
    _eight_bit_from = 1


LAYERWISE: dict[str, Make] = {
    "LAMB": maker(LAMB),
    "LAMB-plain": maker(LAMB, bias_correction=False, fused=False),
    "LARS": maker(LARS),
    "LARS-nesterov": maker(LARS, nesterov=True, lr_in_momentum=False),
    "LARS-decayed": maker(LARS, trust_norm="decayed_gradient", dampening=0.3, trust_clip="larc"),
    "LARS-momentum": maker(LARS, trust_norm="momentum"),
    "LARS-memoryless": maker(LARS, momentum=0.0),
    "LAMB8bit": maker(AllLAMB8bit),
    "LARS8bit": maker(AllLARS8bit, nesterov=True, lr_in_momentum=False),
    "LARS8bit-decayed": maker(AllLARS8bit, trust_norm="decayed_gradient", dampening=0.3),
    "LARS8bit-momentum": maker(AllLARS8bit, trust_norm="momentum"),
    "LAMB8bit-small": maker(LAMB8bit),
    "LARS8bit-small": maker(LARS8bit),
}
KINDS: dict[str, Make] = {
    **LAYERWISE,
    "AdamW8bit": maker(AllAdamW8bit),
    "SGD8bit": maker(AllSGD8bit, dampening=0.1),
    "AdamW8bit-small": maker(AdamW8bit),
    "SGD8bit-small": maker(optim.SGD8bit, nesterov=True),
}
every_layerwise_kind = pytest.mark.parametrize("make", LAYERWISE.values(), ids=LAYERWISE)
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)

# (dtype of the parameters, options): every way in which state and parameter may differ in type.
PRECISIONS = {
    "float32": (torch.float32, {}),
    "float64": (torch.float64, {}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16-master": (torch.bfloat16, {"master_weights": True}),
    "float16-master": (torch.float16, {"master_weights": True}),
}
every_precision = pytest.mark.parametrize(("dtype", "options"), PRECISIONS.values(), ids=PRECISIONS)


def model_of(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).to(dtype)


def set_gradients(parameters: Iterable[Tensor], step: int, scale: float = 1.0) -> None:
    """Random gradients that depend on `step` and the parameter's place alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in parameters:
        parameter.grad = (scale * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        set_gradients(model.parameters(), step)
        optimizer.step()


def stats_of(optimizer: Any) -> dict[str, Any]:
    """`layer_stats()` where the optimizer is layer-wise."""
    return optimizer.layer_stats() if hasattr(optimizer, "layer_stats") else {}


def bits(value: Any) -> Any:
    """A copy of weights or of an optimizer's state that `==` compares bit for bit (NaN equals the same NaN)."""
    if isinstance(value, Tensor):
        raw = value.detach().contiguous().reshape(-1).clone().view(torch.uint8)
        return str(value.dtype), tuple(value.shape), bytes(raw.tolist())
    if isinstance(value, nn.Module):
        return bits(dict(value.state_dict()))
    if isinstance(value, torch.optim.Optimizer):
        return [[bits(value.state[p]) for p in group["params"]] for group in value.param_groups]
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def through_a_file(value: Any) -> Any:
    """What `torch.save` and a safe `torch.load` leave of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
