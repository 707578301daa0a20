"""Layers large enough for 8-bit state, trained on FSDP2's shards beside their unsharded twin with gradients of the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_scale.optim import AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.quantization import BLOCK
from lightning_scale.optim.state.moments import EIGHT_BIT_FROM
from lightning_scale.optim.state.sharded_moments import Rows
from tests.distributed.meshes import own, whole

SHAPES = {
    "layers_whole": (18, 256),  # rows of whole blocks: no shard's edge cuts one
    "layers_uneven": (13, 512),
    "layers_cut": (100, 47),
    "layers_kernel": (70, 3, 5, 5),
    "flat": (5000,),
    "single": (1, 4800),  # the other ranks have no share
    "small": (13, 6),
    "bias": (13,),
    "tiny": (1, 6),
}
WHOLE_BLOCKS = ("layers_whole", "layers_uneven", "single")


class Layers(nn.Module):
    """Gradients depend on the step and element by element on the weights, not on how they are sharded."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=draw) / 3))
        self.frozen = nn.Parameter(torch.randn(5000, generator=draw), requires_grad=False)
        self.coupling = 0.05
        """How much of the weights there is in the gradients."""

    def forward(self, step: int) -> Tensor:
        draw = torch.Generator().manual_seed(step + 1)
        terms = []
        for name, p in self.named_parameters():
            if p.requires_grad:
                direction = torch.randn(SHAPES[name], generator=draw).bfloat16()  # three times that is exact
                terms.append((p * direction.to(p)).sum() + self.coupling * p.square().sum())
        loss: Tensor = torch.stack(terms).sum()
        return loss


Make = Callable[[Any], Any]
MAKERS: dict[str, Make] = {
    "AdamW8bit": lambda p: AdamW8bit(p, lr=0.01, weight_decay=0.1),
    "SGD8bit": lambda p: SGD8bit(p, lr=0.05, nesterov=True),
    "LAMB8bit": lambda p: LAMB8bit(p, lr=0.02, weight_decay=0.1),
    "LAMB8bit-clip": lambda p: LAMB8bit(p, lr=0.02, weight_decay=0.1, max_grad_norm=20.0),
    "LAMB8bit-named": lambda p: LAMB8bit(
        p, lr=0.02, weight_decay=0.1, exclude=["layers_uneven"], eight_bit_except=["*_cut", "single"]
    ),
    "LARS8bit": lambda p: LARS8bit(p, lr=0.2, weight_decay=0.1, trust_coefficient=0.1),
    "LARS8bit-momentum": lambda p: LARS8bit(p, lr=0.02, trust_norm="momentum"),
}


def named(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups, with names."""
    pairs = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [pair for pair in pairs if "layers" in pair[0]]},
        {"params": [pair for pair in pairs if "layers" not in pair[0]], "weight_decay": 0.05},
    ]


def shard(model: Any, mesh: Any, **policies: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=mesh, **policies)


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(step).backward()
        optimizer.step()


def numbers(p: Tensor, state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """A parameter's whole moments as `lightning_scale.optim.quantization` reads them; every rank calls it."""
    from lightning_scale.optim.dtensor import is_sharded, like, local
    from lightning_scale.optim.quantization import dequantize
    from lightning_scale.optim.state.moments import CODES, absmax_key
    from lightning_scale.optim.state.sharded_moments import rows_of

    for key, code in CODES.items():
        if absmax_key(key) in state:
            own = local(state[key])
            read = dequantize(own.reshape(-1), state[absmax_key(key)], code, rows_of(p).start if p.dim() else 0)
            read = read.view(own.shape)
            yield key, whole(like(p, read)) if is_sharded(p) else read
        elif key in state:
            yield key, whole(state[key]).clone()


def own_bits(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """This rank's share of weights and state."""
    return [own(t) for p in model.parameters() for t in (p.detach(), *optimizer.state.get(p, {}).values())]


def in_cut_blocks(shape: tuple[int, ...], ranks: int) -> Tensor:
    """Of each element, in the parameter's shape: whether a shard's edge cuts its block of 8-bit state."""
    length = torch.Size(shape[1:]).numel()
    most = -(-shape[0] // ranks)
    found = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
    for rank in range(1, ranks if found.numel() >= EIGHT_BIT_FROM else 1):
        edge = Rows(min(rank * most, shape[0]), 0, length).start
        if edge % BLOCK and edge < found.numel():
            found[edge // BLOCK * BLOCK : (edge // BLOCK + 1) * BLOCK] = True
    return found.view(shape)
