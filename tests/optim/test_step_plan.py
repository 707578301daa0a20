"""What an optimizer remembers from one step to the next: whatever changes, steps are those of one that forgets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, dtensor

SHAPES = ((80, 64), (64,), (3, 5), (7,))
MAKE: dict[str, Callable[[Any], Any]] = {
    "LAMB": lambda p: LAMB(p, lr=0.01, weight_decay=0.1),
    "LAMB-masters": lambda p: LAMB(p, lr=0.01, master_weights=True),
    "LARS": lambda p: LARS(p, lr=1.0),
    "LAMB8bit": lambda p: LAMB8bit(p, lr=0.01),
    "AdamW8bit": lambda p: AdamW8bit(p, lr=0.01),
}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def parameters(dtype: torch.dtype, mesh: Any) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(_placed(torch.randn(shape).to(dtype), mesh)) for shape in SHAPES]


def _placed(t: Tensor, mesh: Any) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor

    return t if mesh is None else distribute_tensor(t, mesh, [Shard(0)])


def _own(t: Tensor) -> Tensor:
    return t.to_local() if hasattr(t, "to_local") else t  # type: ignore[no-any-return]


def _leave_out(optimizer: Optimizer, params: list[nn.Parameter], mesh: Any) -> None:
    params[1].grad = None


def _freeze(optimizer: Optimizer, params: list[nn.Parameter], mesh: Any) -> None:
    params[0].requires_grad_(False)
    params[0].grad = None


def _new_group(optimizer: Optimizer, params: list[nn.Parameter], mesh: Any) -> None:
    if len(optimizer.param_groups) == 1:
        params.append(nn.Parameter(_placed(torch.ones(6, 4, dtype=params[0].dtype), mesh)))
        params[-1].grad = torch.full_like(params[-1], 0.5)
        optimizer.add_param_group({"params": [params[-1]], "lr": 0.5})


def _other_memory(optimizer: Optimizer, params: list[nn.Parameter], mesh: Any) -> None:
    params[2].data = params[2].data.clone() * 0.5


def _other_rate(optimizer: Optimizer, params: list[nn.Parameter], mesh: Any) -> None:
    optimizer.param_groups[0]["lr"] *= 0.5


def _load(optimizer: Optimizer, params: list[nn.Parameter], mesh: Any) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _other_state(optimizer: Optimizer, params: list[nn.Parameter], mesh: Any) -> None:
    own = optimizer.state[params[3]]
    for key, value in own.items():
        own[key] = value.clone()


def _no_state(optimizer: Optimizer, params: list[nn.Parameter], mesh: Any) -> None:
    optimizer.state.pop(params[0], None)


def _another_parameter(optimizer: Optimizer, params: list[nn.Parameter], mesh: Any) -> None:
    new = nn.Parameter(params[2].detach().clone())
    new.grad = params[2].grad
    optimizer.param_groups[0]["params"][2] = new
    params[2] = new


CHANGES = [
    _leave_out,
    _freeze,
    _new_group,
    _other_memory,
    _other_rate,
    _load,
    _other_state,
    _no_state,
    _another_parameter,
]


def _train(make: str, change: Any, forgets: bool, mesh: Any) -> tuple[list[Tensor], int]:
    params = parameters(torch.bfloat16 if "masters" in make else torch.float32, mesh)
    optimizer = MAKE[make](list(params))
    buckets, kept = 0, []
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            if p.requires_grad:
                p.grad = _placed(torch.randn(p.shape, generator=generator).to(p.dtype), mesh)
                kept.append(p.grad)  # so that the next ones lie elsewhere
        if step in (2, 4):
            change(optimizer, params, mesh)
        if forgets:
            optimizer._plan.forget()
        before = dict(optimizer._plan._last)
        optimizer.step()
        buckets += sum(optimizer._plan._last[number] is last for number, last in before.items())
    return [_own(p.detach()).clone() for p in params], buckets


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("kept", ["plain", "DTensor"])
def test_steps_are_those_of_one_that_forgets(kept: str, make: str, change: Any, mesh: Any) -> None:
    where = mesh if kept == "DTensor" else None
    found, remembered = _train(make, change, False, where)
    expected, again = _train(make, change, True, where)
    assert remembered > 0 and again == 0, "steps are remembered, and nothing is where it was forgotten"
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_gradient_of_another_sharding_is_seen(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    params = parameters(torch.float32, mesh)
    optimizer = MAKE["LAMB"](params)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    params[0].grad = distribute_tensor(torch.ones(SHAPES[0]), mesh, [Replicate()])
    with pytest.raises(ValueError, match=r"gradient of .* is sharded as"):
        optimizer.step()


def test_sums_of_offloaded_shards_stay_on_the_host_where_their_group_reduces_there(
    mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduce = dtensor.AllReduce((dist.group.WORLD,), "meta")  # of a device that is not the tensor's
    here = torch.tensor([1.0, 2.0])
    reduce(here)
    assert here.tolist() == [1.0, 2.0]
    moved = []
    monkeypatch.setattr(dtensor, "backends_of", lambda group: "cuda:nccl")
    monkeypatch.setattr(Tensor, "to", lambda t, device: moved.append(device) or t.clone())
    reduce(here)
    assert moved == ["meta"]
