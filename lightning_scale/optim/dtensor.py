"""Parameters that FSDP2 (``fully_shard``) or tensor parallelism keep as DTensors: their local tensors, and where those
elements lie. Only this file knows DTensors.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from lightning_scale.optim.layout import Layout, Run, layer_info

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def is_sharded(t: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is a DTensor. Their package takes long to import, and whoever has one has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Tensor) -> Tensor:
    """Return this rank's own tensor, which is the same memory; a plain tensor is its own."""
    return t._local_tensor if is_sharded(t) else t  # to_local() makes a new view of a parameter each time


def locals_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return `local` of each, quickly."""
    return [getattr(t, "_local_tensor", t) for t in tensors]


def sharded_alike(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether each DTensor has the mesh and the placements of its other."""
    for t, other in zip(tensors, others, strict=True):
        own, its = getattr(t, "_spec", None), other._spec  # type: ignore[attr-defined]
        if own is not its and (own is None or own.mesh != its.mesh or own.placements != its.placements):
            return False
    return True


def sharding(t: Tensor) -> Hashable:
    """Return what tensors must have in common to be in one layout: mesh and placements, or None for plain ones."""
    return (t.device_mesh, t.placements) if is_sharded(t) else None


def like(p: Tensor, own: Tensor) -> Tensor:
    """Return a tensor of this rank's share of a parameter, row for row, as a DTensor of the parameter's sharding.

    It is the same memory. Beside a plain parameter the tensor is returned as it is.
    """
    if not is_sharded(p):
        return own
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    # Not from_local(): to the mesh's device, which that moves it to, an offloaded share does not belong.
    same = own.shape == p.to_local().shape
    shape = p.shape if same else torch.Size([*p.shape[:1], *own.shape[1:]])
    stride = p.stride() if same else torch.empty(shape, device="meta").stride()
    spec = DTensorSpec(p.device_mesh, p.placements, TensorMeta(shape, stride, own.dtype))
    return DTensor(own, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def sharded_layout(names: Sequence[str], params: Sequence[Tensor], full_precision: Sequence[str] = ()) -> Layout:
    """Return the layout of DTensors of one mesh and placement. Each has one run at the most. See `layer_info` for the patterns.

    Raises:
        ValueError: For placements that a norm over ranks is not defined on.
    """
    shares = [share(name, p) for name, p in zip(names, params, strict=True)]
    return Layout(
        layers=tuple(layer_info(n, p.shape, full_precision) for n, p in zip(names, params, strict=True)),
        runs=tuple(Run(i, i, 0, start, length) for i, (start, length) in enumerate(shares) if length),
        tensor_numels=tuple(length for _, length in shares),
        all_reduce=_all_reduce(params[0]),
    )


def check_rows(name: str, p: Tensor) -> None:
    """Raise a ValueError for a DTensor whose shards are not runs of whole rows."""
    if not is_sharded(p):
        return
    from torch.distributed.tensor import Shard

    sharded = [placement for placement in p.placements if not placement.is_replicate()]
    if len(sharded) > 1 or any(type(placement) is not Shard or placement.dim != 0 for placement in sharded):
        raise ValueError(
            f"{name} takes parameters sharded along their first dimension alone, as fully_shard does it, and one of shape"
            f" {tuple(p.shape)} is sharded as {p.placements}: use {name.removesuffix('8bit')} for it."
        )


def check_gradient(name: str, p: Tensor) -> None:
    """Raise a ValueError for a gradient that is not sharded as its parameter is."""
    if p.grad is not None and sharding(p.grad) != sharding(p):
        raise ValueError(
            f"the gradient of {name!r} is sharded as {_words(p.grad)} and the parameter as {_words(p)}: step on gradients as"
            " fully_shard or DTensor's own operations leave them."
        )


def _words(t: Tensor) -> str:
    return str(t.placements) if is_sharded(t) else "a plain tensor"


def _all_reduce(p: Tensor) -> AllReduce | None:
    assert is_sharded(p)
    mesh = p.device_mesh
    groups = tuple(mesh.get_group(i) for i, placement in enumerate(p.placements) if placement.is_shard())
    return AllReduce(groups, mesh.device_type) if groups else None


def share(name: str, p: Tensor) -> tuple[int, int]:
    """Return the first element of this rank's share, counted in the whole parameter row by row, and how many it has.

    A parameter that is sharded along its rows alone is one run here. In any other sharding the first element means nothing, and
    only sums over all elements are asked for.
    """
    assert is_sharded(p)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(placement.is_partial() for placement in p.placements):
        raise ValueError(f"{name!r} is a DTensor of partial sums: redistribute it to shards before it is optimized.")
    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    own = p.to_local()
    if tuple(shape) != tuple(own.shape):
        raise RuntimeError(
            f"this rank's share of {name!r} has shape {tuple(own.shape)}, and torch {torch.__version__} says"
            f" {tuple(shape)}: this version of lightning_scale does not know its DTensors."
        )
    row = p.numel() // p.shape[0] if p.dim() and p.shape[0] else 1
    return (offset[0] * row if offset else 0), own.numel()


@dataclass(frozen=True)
class AllReduce:
    """The sum over the ranks that share the layers.

    Args:
        groups: A process group for each dimension of the mesh that shards. A sum over the one and then over the other is over
            all ranks.
        device: The type of the device whose tensors these groups reduce.
    """

    groups: tuple[ProcessGroup, ...]
    device: str

    def __call__(self, tensor: Tensor) -> None:
        """Replace the tensor's numbers by their sums over the ranks."""
        # Offloaded shards lie on the CPU: a group of NCCL alone cannot reduce there, one of "cpu:gloo,cuda:nccl" can.
        here = all(f"{tensor.device.type}:" in backends_of(group) for group in self.groups)
        moved = tensor if here else tensor.to(self.device)
        for group in self.groups:
            torch.distributed.all_reduce(moved, group=group)
        if moved is not tensor:
            tensor.copy_(moved)


def backends_of(group: ProcessGroup) -> str:
    """Return what reduces tensors of which device in a group, such as "cpu:gloo,cuda:nccl"."""
    return torch.distributed.distributed_c10d.get_backend_config(group)
