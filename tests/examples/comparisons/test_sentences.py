"""Sentences: where they end, how they are filled up, and that every way to train sees the same ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.bert.masking import IGNORED
from examples.bert.tokenizer import CLS_ID
from examples.comparisons.sentences import PaddedSamples, SentenceData, Sentences
from lightning_scale.data.ranks import as_if

_STOP = 9


def _stream(*lengths: int) -> np.ndarray:
    """Sentences of so many tokens, the stop included."""
    return np.concatenate([[*range(20, 20 + length - 1), _STOP] for length in lengths])


def test_sentences_by_hand() -> None:
    found = Sentences(_stream(5, 2, 4, 12, 6), [_STOP], 8)  # of 2 tokens: none; of 12: cut
    assert [found[i].tolist() for i in range(len(found))] == [
        [CLS_ID, 20, 21, 22, 23, _STOP],
        [CLS_ID, 20, 21, 22, _STOP],
        [CLS_ID, 20, 21, 22, 23, 24, 25, 26],
        [CLS_ID, 20, 21, 22, 23, 24, _STOP],
    ]
    assert len(Sentences(_stream(5, 5, 5), [_STOP], 8)) == 2  # an even number


def test_a_sentence_hides_a_share_of_its_own_tokens() -> None:
    samples = PaddedSamples(Sentences(_stream(7, 20), [_STOP], 40), 40, 60, (0, 0), held_out=True)
    short, long = samples[0], samples[1]
    assert [int((item["targets"] != IGNORED).sum()) for item in (short, long)] == [1, 3]  # of 8 and of 21
    for item, length in ((short, 8), (long, 21)):
        assert [len(item[name]) for name in ("input_ids", "positions", "targets")] == [40, 6, 6]
        assert (item["input_ids"][length:] == 0).all() and (item["positions"] < length).all()
    assert (samples[2]["targets"] == IGNORED).all()  # past the last: padding of a rank's share


@pytest.fixture
def sentence_data(text_file: Path, cache_dir: Path) -> Callable[..., SentenceData]:
    def make(**options: object) -> SentenceData:
        data = SentenceData(
            files=[str(text_file)],
            vocab_size=128,
            sequence_length=64,
            cache_dir=str(cache_dir),
            **options,  # type: ignore[arg-type]
        )
        data.prepare_data()
        return data

    return make


def test_micro_batches_have_unequal_numbers_of_hidden_tokens(sentence_data: Callable[..., SentenceData]) -> None:
    batches = list(sentence_data(micro_batch_size=4).train_dataloader())
    assert len({int((batch["targets"] != IGNORED).sum()) for batch in batches}) > 3


@pytest.mark.parametrize("resumable", [False, True])
def test_the_same_samples_in_micro_batches_of_any_size(
    sentence_data: Callable[..., SentenceData], resumable: bool
) -> None:
    def ids(micro_batch_size: int) -> torch.Tensor:
        loader = sentence_data(micro_batch_size=micro_batch_size, resumable=resumable).train_dataloader()
        return torch.cat([batch["input_ids"] for batch in loader])

    small, large = ids(2), ids(8)
    assert torch.equal(small[: len(large)], large) and len(small) - len(large) < 8


def test_two_ranks_see_an_epochs_samples_between_them(sentence_data: Callable[..., SentenceData]) -> None:
    data = sentence_data(micro_batch_size=4)
    whole = torch.cat([batch["input_ids"] for batch in data.train_dataloader()])
    with as_if(2):
        mine = torch.cat([batch["input_ids"] for batch in data.train_dataloader()])
    assert torch.equal(mine, whole[::2])
