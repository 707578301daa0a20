"""ZeRO-1 and ZeRO-2 (``DeepSpeedZeroOptimizer``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_scale.strategies.zero import deepspeed_internals
from lightning_scale.strategies.zero.deepspeed_internals import insist
from lightning_scale.strategies.zero.flat import Flat, pieces_layout
from lightning_scale.strategies.zero.partitions import Gradients
from lightning_scale.strategies.zero.slices import Slices

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
