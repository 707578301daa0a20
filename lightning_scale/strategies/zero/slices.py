"""ZeRO-1 and ZeRO-2: parameters lie in one long tensor a group, cut into equal slices, one of which each rank steps.

``DeepSpeedZeroOptimizer`` and, for bfloat16 parameters with float32 gradients on stage 1, ``BF16_Optimizer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_scale.strategies.zero import deepspeed_internals
from lightning_scale.strategies.zero.deepspeed_internals import insist
from lightning_scale.strategies.zero.flat import Flat, pieces_layout, slice_layout
from lightning_scale.strategies.zero.partitions import Gradients, Partitions, same_values, sum_over


class Slices(Partitions):
    """A slice of each group's long tensor."""

    _flats: list[Flat]

    def __init__(self, wrapper: Any, names: Mapping[int, str], frozen: Sequence[Any] = ()) -> None:
        super().__init__(wrapper, names, frozen)
        self._views: list[tuple[Any, Tensor]] = []
        self._live: list[Tensor] = []

    def slice_of(self, group: int, params: list[Any], long: Tensor, slices: list[Tensor], own: Tensor) -> Flat:
        """The slice of one group.

        Args:
            group: The group's number.
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
        begin = _offset(slices[rank], long)
        insist(begin == rank * size, f"rank {rank}'s slice begins at {begin}, not at {rank * size}")
        insist(same_values(own.detach(), slices[rank]), "the stepped tensor is not a copy of the slice")
        # The views tell, also where the order of the parameters was changed or space was left between them.
        starts = [_offset(p.data, long) for p in params]
        insist(all(p.is_contiguous() for p in params), "a parameter is not contiguous")
        layers = [self.layer(p, p.shape) for p in params]
        self._views += [(p, p.data) for p in params]
        self._live.append(slices[rank])
        return Flat(own, group, slice_layout(layers, starts, begin, size, sum_over(ranks)))

    def copies(self) -> Iterator[tuple[Tensor, Tensor]]:
        for p, view in self._views:
            if p.data_ptr() != view.data_ptr():  # p.data = ...
                view.copy_(p.data)
                p.data = view
        for flat, live in zip(self._flats, self._live, strict=True):
            yield flat.tensor.detach(), live

    def before_step(self, prepare: Callable[[], None]) -> None:
        self.run_before("step", prepare)


_BETWEEN_STEPS = -1  # of micro_step_id


class Stage12(Slices):
    """Gradients are lists of pieces in the slice's order, or where the optimizer is offloaded the slice's own."""

    def flats(self) -> list[Flat]:
        w = self.wrapper
        deepspeed_internals.check(deepspeed_internals.STAGE12, w)
        if w.cpu_offload:
            deepspeed_internals.check(deepspeed_internals.OFFLOADED, w)
        insist(w.micro_step_id == _BETWEEN_STEPS, f"micro_step_id is {w.micro_step_id} before the first step")
        groups = zip(
            w.bit16_groups,
            w.bit16_groups_flat,
            w.parallel_partitioned_bit16_groups,
            w.single_partition_of_fp32_groups,
            strict=True,
        )
        self._flats = [self.slice_of(i, *group) for i, group in enumerate(groups)]
        return self._flats

    def gradients(self) -> Gradients:
        if self.wrapper.cpu_offload:
            self.wrapper._wait_for_offload_copies()  # from the GPU
        return [
            (pieces_layout(pieces, flat.layout.all_reduce), pieces)
            for flat, pieces in ((flat, self._pieces(flat)) for flat in self._flats)
        ]

    def _pieces(self, flat: Flat) -> list[Tensor]:
        if self.wrapper.cpu_offload:
            pieces: list[Any] = [flat.tensor.grad]
        else:
            pieces = list(self.wrapper.averaged_gradients[flat.group])
        numel = sum(p.numel() for p in pieces)
        insist(numel == flat.tensor.numel(), f"a slice of {flat.tensor.numel()} elements has {numel} gradients")
        return pieces

    def forget_gradients(self) -> None:
        w = self.wrapper
        for group in list(w.averaged_gradients):
            w.averaged_gradients[group] = None
        for group in list(w.all_grad_tensors):
            w.all_grad_tensors[group] = None
        w.micro_step_id = _BETWEEN_STEPS
        if w.cpu_offload:
            w._offload_accumulated_param_ids = set()
            for flat in self._flats:  # else a parameter without a gradient would keep the last window's
                if flat.tensor.grad is not None:
                    flat.tensor.grad.zero_()


class Bf16(Slices):
    """Every rank has all gradients, and steps on those of its slice."""

    alike = False

    def flats(self) -> list[Flat]:
        w = self.wrapper
        deepspeed_internals.check(deepspeed_internals.BF16, w)
        groups = zip(
            w.bf16_groups,
            w.bf16_groups_flat,
            w.bf16_partitioned_groups,
            w.fp32_groups_flat_partition,
            strict=True,
        )
        self._flats = [self.slice_of(i, *group) for i, group in enumerate(groups)]
        return self._flats

    def gradients(self) -> Gradients:
        return [(flat.layout, [self.wrapper.fp32_groups_gradient_flat_partition[flat.group]]) for flat in self._flats]

    def forget_gradients(self) -> None:
        """Its own ``zero_grad()`` drops them all."""


def _offset(view: Tensor, long: Tensor) -> int:
    """How many elements of the tensor that it is a view of come before the first one."""
    same = view.untyped_storage().data_ptr() == long.untyped_storage().data_ptr()
    insist(same and view.dtype == long.dtype, "a parameter is no view of its group's tensor")
    return (view.data_ptr() - long.data_ptr()) // long.element_size()
