"""Masked samples as a data set, and how ranks share the held-out ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from examples.bert.masking import IGNORED, mask
from examples.bert.tokenizer import MASK_ID, SPECIAL_TOKENS


class MaskedSamples(Dataset[dict[str, Tensor]]):
    """Samples whose masks follow from the sample and the pass over the data, whoever asks and in whatever order.

    An item is asked for by its position, ``pass * len(samples) + index``, and is a dict of int64 tensors: "input_ids"
    [sequence length], "positions" [places to guess] and "targets" [places to guess].

    Args:
        samples: Arrays of tokens, [sequence length] each; the packed text.
        vocab_size: Tokens in the vocabulary.
        key: Non-negative integers that the masks are drawn from, beside pass and index.
        held_out: The masks of the first pass are the only ones; items of later passes are padding, and none of their
            targets counts.
    """

    def __init__(self, samples: Sequence[Any], vocab_size: int, key: tuple[int, ...], held_out: bool = False) -> None:
        self.samples = samples
        self.vocab_size = vocab_size
        self.key = key
        self.held_out = held_out

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        passed, index = divmod(position, len(self))
        padding = self.held_out and passed > 0
        masked = mask(
            self.samples[index],
            (*self.key, 0 if padding else passed, index),
            mask_id=MASK_ID,
            special_tokens=len(SPECIAL_TOKENS),
            vocab_size=self.vocab_size,
        )
        if padding:
            masked.targets.fill(IGNORED)
        return {name: torch.from_numpy(array) for name, array in masked._asdict().items()}


class RankShare(DistributedSampler[int]):
    """Every rank's share of the held-out samples: in order, equally many on each, every sample exactly once.

    torch's sampler fills the last round with samples that then count twice. This one fills it with the positions after
    the last sample, which `MaskedSamples` knows as padding. A DistributedSampler, so Lightning leaves it as it is.

    Args:
        size: Number of held-out samples.
        rank: This rank; None asks ``torch.distributed``.
        world_size: Number of ranks; None asks ``torch.distributed``.
    """

    def __init__(self, size: int, rank: int | None = None, world_size: int | None = None) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if world_size is None:
            world_size = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self) * self.num_replicas, self.num_replicas))

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.num_replicas)  # type: ignore[arg-type]
