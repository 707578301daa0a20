"""Masked samples as a data set, and the ranks' shares of the held-out ones."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from examples.bert.masking import IGNORED
from examples.bert.packing import PackedSamples
from examples.bert.samples import MaskedSamples, RankShare
from lightning_scale.data import ResumableBatchSampler


def _dataset(samples: int = 12, held_out: bool = False) -> MaskedSamples:
    stream = np.random.default_rng(0).integers(5, 60, size=samples * 19)
    return MaskedSamples(PackedSamples(stream, 20, cls_id=2), vocab_size=60, key=(0, 1), held_out=held_out)


def test_a_position_is_pass_and_index() -> None:
    dataset = _dataset()
    size = len(dataset)
    for index in range(size):
        first, second = dataset[index], dataset[size + index]
        restored = [item["input_ids"].scatter(0, item["positions"], item["targets"]) for item in (first, second)]
        assert restored[0].tolist() == restored[1].tolist() == dataset.samples[index].tolist()
        assert (first["positions"].tolist(), first["input_ids"].tolist()) != (
            second["positions"].tolist(),
            second["input_ids"].tolist(),
        )


def test_held_out_items_after_the_first_pass_do_not_count() -> None:
    dataset = _dataset(held_out=True)
    first, padding = dataset[3], dataset[len(dataset) + 3]
    assert (first["targets"] != IGNORED).all()
    assert (padding["targets"] == IGNORED).all()
    assert padding["input_ids"].tolist() == first["input_ids"].tolist()


def test_the_number_of_workers_does_not_matter() -> None:
    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        sampler = ResumableBatchSampler(12, 4, epoch_samples=32, positions=True)  # almost three passes
        return list(DataLoader(_dataset(), batch_sampler=sampler, num_workers=workers))

    alone, with_workers = batches(0), batches(2)
    assert len(alone) == len(with_workers) == 8
    for a, b in zip(alone, with_workers, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@given(size=st.integers(1, 40), world_size=st.integers(1, 7))
def test_ranks_share_the_held_out_samples(size: int, world_size: int) -> None:
    shares = [list(RankShare(size, rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1  # a rank with fewer batches would hang the others
    assert len(shares[0]) == len(RankShare(size, 0, world_size))
    everything = sorted(position for share in shares for position in share)
    assert everything[:size] == list(range(size))  # each exactly once
    assert len(everything) - size < world_size
    assert all(position // size > 0 for position in everything[size:])  # padding
