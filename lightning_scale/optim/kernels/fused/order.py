"""In which order one launch takes both passes over all chunks, so that pass 2 finds in the cache what pass 1 left there.

Pass 2 of a layer needs the norms that pass 1 of the whole layer gives. So the items of the list below are taken one by
one, in order (by a counter: whoever has an item knows that all before it are taken and being worked on), pass 1 never
waits, and pass 2 waits for items before its own alone: nothing can wait for ever.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.kernels.fused.table import Chunks
from lightning_scale.optim.layout import Layout

ORDERED_CHUNK = 1 << 12
"""Elements of one item: small, since what is being worked on takes its share of the cache."""

LAG = 1 << 21
"""Elements that pass 1 goes ahead before pass 2 of a layer begins: about what a large GPU works on at a time, so that
pass 2 rarely waits, and float32 weights and moments of which stay in 50 MB of cache."""


def order_of(layout: Layout, chunks: Chunks, lag: int = LAG) -> Tensor:
    """[2 · chunks] int32: c for pass 1 of chunk c, -1 - c for its pass 2.

    Layers follow one another in pass 1; pass 2 of a layer begins when pass 1 is ``lag`` elements past its end, and goes
    backwards, for what was seen last is what a cache still holds.
    """
    key = ("order", chunks.tensor.device, chunks.count, lag)
    if key not in layout.cache:
        layout.cache[key] = torch.tensor(_order(chunks, lag), dtype=torch.int32, device="cpu").to(chunks.tensor.device)
    order: Tensor = layout.cache[key]
    return order


def _order(chunks: Chunks, lag: int) -> list[int]:
    first, lengths = chunks.first.tolist(), chunks.length.tolist()
    order: list[int] = []
    waiting: list[tuple[int, int]] = []  # layers in pass 1, with the elements after which their pass 2 begins
    seen = 0
    for layer in range(len(first) - 1):
        while waiting and waiting[0][1] <= seen:
            order += _backwards(first, waiting.pop(0)[0])
        order += range(first[layer], first[layer + 1])
        seen += sum(lengths[first[layer] : first[layer + 1]])
        waiting.append((layer, seen + lag))
    for layer, _ in waiting:
        order += _backwards(first, layer)
    return order


def _backwards(first: list[int], layer: int) -> list[int]:
    return [-1 - chunk for chunk in reversed(range(first[layer], first[layer + 1]))]
