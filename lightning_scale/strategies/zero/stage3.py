"""ZeRO-3 (``DeepSpeedZeroOptimizer_Stage3``): shares of parameters, stepped sub-group by sub-group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_scale.strategies.zero import deepspeed_internals
from lightning_scale.strategies.zero.deepspeed_internals import insist
from lightning_scale.strategies.zero.flat import Flat, shard_layout
from lightning_scale.strategies.zero.partitions import Gradients, Partitions, same_values, sum_over


class Stage3(Partitions):
    """All gradients of a window lie in one buffer, sub-group after sub-group, wherever the optimizer lies."""

    def flats(self) -> list[Flat]:
        w = self.wrapper
        deepspeed_internals.check(deepspeed_internals.STAGE3, w)
        for p in (p for group in w.fp16_groups for p in group):
            deepspeed_internals.check(deepspeed_internals.PARAMETER, p)
        insist(
            len(w.fp16_groups) == len(w.fp32_partitioned_groups_flat) == len(w.fp16_partitioned_groups_flat_numel),
            "its sub-groups are not as many as its flat tensors",
        )
        self._stepping = False
        self._flats = [self._flat(number, params) for number, params in enumerate(w.fp16_groups)]
        self._gradients: list[Tensor] = []
        offset = 0
        for flat in self._flats:
            (numel,) = flat.layout.tensor_numels
            self._gradients.append(w.grad_partitions_flat_buffer.narrow(0, offset, numel))
            offset += numel
        insist(offset == w.grad_partitions_flat_buffer.numel(), "its gradient buffer is not as long as its sub-groups")
        return self._flats

    def _flat(self, number: int, params: list[Any]) -> Flat:
        w, own = self.wrapper, self.wrapper.fp32_partitioned_groups_flat[number]
        ranks = w._get_sub_group_process_group(number)
        layers = [self.layer(p, p.ds_shape) for p in params]
        shares = [p.partition_numel() for p in params]
        layout = shard_layout(layers, shares, torch.distributed.get_rank(ranks), sum_over(ranks))
        insist(
            layout.tensor_numels[0] == w.fp16_partitioned_groups_flat_numel[number],
            f"sub-group {number} has {w.fp16_partitioned_groups_flat_numel[number]} elements, and its shares"
            f" {layout.tensor_numels[0]}",
        )
        loaded = own.numel() > 0
        if loaded:
            for segment in layout.runs:
                shard = params[segment.layer].ds_tensor
                if shard.numel() >= segment.length:  # else it lies on a disk
                    held = own.detach()[segment.tensor_start : segment.tensor_start + segment.length]
                    same = same_values(held, shard.detach().view(-1)[: segment.length])
                    insist(same, f"the share of {layers[segment.layer].name!r} is not where it should be")
        return Flat(own, w.sub_group_to_group_id[number], layout, loaded)

    def gradients(self) -> Gradients:
        return [(flat.layout, [gradient]) for flat, gradient in zip(self._flats, self._gradients, strict=True)]

    def copies(self) -> Iterator[tuple[Tensor, Tensor]]:
        for flat, params in zip(self._flats, self.wrapper.fp16_groups, strict=True):
            for run in flat.layout.runs if flat.loaded else ():
                p = params[run.layer]
                # Small ones stay whole between steps; of the others there is the share, into which
                # deepspeed.zero.GatheredParameters writes.
                whole = p.numel() == p.ds_numel
                live = p.data.view(-1)[run.layer_start :] if whole else p.ds_tensor.detach().view(-1)
                if live.numel() >= run.length:  # else it lies on a disk
                    own = flat.tensor.detach()[run.tensor_start : run.tensor_start + run.length]
                    yield own, live[: run.length]
        rank = torch.distributed.get_rank(self.wrapper._get_sub_group_process_group(0))
        for p in self._frozen:
            start = rank * p.partition_numel()
            length = min(p.partition_numel(), p.ds_numel - start)
            if p.numel() == p.ds_numel and length > 0:
                yield p.ds_tensor.detach().view(-1)[:length], p.data.view(-1)[start : start + length]

    def before_step(self, prepare: Callable[[], None]) -> None:
        def prepared() -> None:
            self._stepping = True
            prepare()
            if self.wrapper.offload_optimizer:  # else a parameter without a gradient would keep the last window's
                for flat in self._flats:
                    if flat.loaded and flat.tensor.grad is not None:
                        flat.tensor.grad.zero_()

        # Before offloaded gradients are copied (to disk, perhaps) and measured.
        self.run_before("finalize_gradient_accumulation_boundary", prepared)
        self.run_after("step", self._stepped)

    def _stepped(self) -> None:
        self._stepping = False

    def forget_gradients(self) -> None:
        # Its own zero_grad() has the next micro-batch overwrite the buffer, but not where that has no gradient. Its step()
        # calls zero_grad() and goes on to read the buffer.
        if not self._stepping:
            self.wrapper.grad_partitions_flat_buffer.zero_()
