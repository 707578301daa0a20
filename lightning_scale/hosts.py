"""A process group between hosts, beside the one between devices: what goes over it never goes through a GPU's memory."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch

_made: tuple[Any, Any] | None = None  # for which process group, and what


def host_group() -> Any:
    """Return a gloo group of all ranks: torch's default one where it is that. All ranks call this; there is a process group."""
    global _made
    import torch.distributed as dist

    if "gloo" in dist.get_backend():
        return dist.group.WORLD
    if _made is None or _made[0] is not dist.group.WORLD:
        interface = interface_of_nccl()
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        _made = dist.group.WORLD, dist.new_group(backend="gloo")
    return _made[1]


def interface_of_nccl() -> str | None:
    """Return the network interface that NCCL is told to use, where it is told one: gloo would take the host name's.

    ``NCCL_SOCKET_IFNAME`` has prefixes of names, or whole ones behind "=".
    """
    wanted = os.environ.get("NCCL_SOCKET_IFNAME", "")
    if not wanted or wanted.startswith("^"):
        return None
    whole, names = wanted.startswith("="), wanted.lstrip("=").split(",")
    for _, here in socket.if_nameindex():
        if any(here == name if whole else here.startswith(name) for name in names if name):
            return here
    return None


def collected(tensors: list[torch.Tensor], described: Any) -> list[tuple[Any, list[torch.Tensor]]] | None:
    """Gather CPU tensors of all ranks on rank 0, one after another. All ranks call this.

    Args:
        tensors: This rank's.
        described: What rank 0 is to know of them; it is pickled.

    Returns:
        On rank 0 what every rank has described, and its tensors; None on the others.
    """
    import torch.distributed as dist

    group, rank, ranks = host_group(), dist.get_rank(), dist.get_world_size()
    own = (described, [(t.shape, t.dtype) for t in tensors])
    everybodys: list[Any] | None = [None] * ranks if rank == 0 else None
    dist.gather_object(own, everybodys, group=group)
    if everybodys is None:
        for t in tensors:
            if t.numel():
                dist.send(_bytes(t), 0, group=group)
        return None
    found = [(described, tensors)]
    for source, (theirs, kinds) in enumerate(everybodys):
        if source == 0:
            continue
        received = [torch.empty(shape, dtype=dtype) for shape, dtype in kinds]
        for t in received:
            if t.numel():
                dist.recv(_bytes(t), source, group=group)
        found.append((theirs, received))
    return found


def _bytes(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(-1).view(torch.uint8)  # of any dtype
