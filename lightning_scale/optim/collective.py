"""The sum over ranks that layouts of sharded parameters name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class AllReduce:
    """The sum over the ranks that share the layers.

    Args:
        groups: One a dimension of the mesh that shards; a sum over the one and then over the other is over all.
        device: Of the tensors that these groups reduce.
    """

    groups: tuple[ProcessGroup, ...]
    device: str

    def __call__(self, tensor: Tensor) -> None:
        """Sum in place."""
        # Offloaded shards lie on the CPU, where their group (NCCL's) cannot reduce.
        moved = tensor if tensor.device.type == self.device else tensor.to(self.device)
        for group in self.groups:
            torch.distributed.all_reduce(moved, group=group)
        if moved is not tensor:
            tensor.copy_(moved)
