"""What ZeRO-1, ZeRO-2 and BF16_Optimizer share: parameters lie in one long tensor a group, cut into equal slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_scale.strategies.zero.deepspeed_internals import insist
from lightning_scale.strategies.zero.flat import Flat, slice_layout
from lightning_scale.strategies.zero.partitions import Partitions, same_values, sum_over


class Slices(Partitions):
    """A slice of each group's long tensor."""

    def slice_of(self, group: int, params: list[Any], long: Tensor, slices: list[Tensor], own: Tensor) -> Flat:
        """One group's.

        Args:
            group: Which.
            params: Its parameters: views into the long tensor.
            long: That tensor.
            slices: Every rank's slice of it.
            own: The float32 tensor that this rank steps.
        """
        ranks = self.wrapper.real_dp_process_group[group]
        rank = torch.distributed.get_rank(ranks)
        insist(len(slices) == torch.distributed.get_world_size(ranks), f"group {group} has {len(slices)} slices")
        size = slices[rank].numel()
        insist(all(s.numel() == size for s in slices), "its slices are not equally long")
        begin = _place(slices[rank], long)
        insist(begin == rank * size, f"rank {rank}'s slice begins at {begin}, not at {rank * size}")
        insist(same_values(own.detach(), slices[rank].to(own)), "the stepped tensor is not a copy of the slice")
        # The views tell, also where the order of the parameters was changed or space was left between them.
        starts = [_place(p.data, long) for p in params]
        insist(all(p.is_contiguous() for p in params), "a parameter is not contiguous")
        layers = [self.layer(p, p.numel(), p.dim()) for p in params]
        return Flat(own, group, slice_layout(layers, starts, begin, size, sum_over(ranks)))

    def before_step(self, prepare: Callable[[], None]) -> None:
        self.run_before("step", prepare)


def _place(view: Tensor, long: Tensor) -> int:
    """The first element's place in the tensor that it is a view of."""
    same = view.untyped_storage().data_ptr() == long.untyped_storage().data_ptr()
    insist(same and view.dtype == long.dtype, "a parameter is no view of its group's tensor")
    return (view.data_ptr() - long.data_ptr()) // long.element_size()
