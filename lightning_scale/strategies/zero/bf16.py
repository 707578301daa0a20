"""ZeRO-1 on bfloat16 parameters with float32 gradients (``BF16_Optimizer``): one call for all groups."""

from __future__ import annotations

from lightning_scale.strategies.zero import deepspeed_internals
from lightning_scale.strategies.zero.flat import Flat
from lightning_scale.strategies.zero.partitions import Gradients
from lightning_scale.strategies.zero.slices import Slices


class Bf16(Slices):
    """Every rank has all gradients, and steps on those of its slice."""

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
