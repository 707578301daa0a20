"""No token is lost but a last tail."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.bert.packing import PackedSamples, join

_CLS, _SEP = 2, 3
_documents = st.lists(st.lists(st.integers(5, 99), max_size=30), max_size=12)


@given(documents=_documents, sequence_length=st.integers(3, 20))
def test_nothing_is_lost_but_the_tail(documents: list[list[int]], sequence_length: int) -> None:
    stream = np.array(list(join(documents, _SEP)), dtype=np.uint16)
    packed = PackedSamples(stream, sequence_length, _CLS)
    samples = [packed[i].tolist() for i in range(len(packed))]
    assert all(len(sample) == sequence_length and sample[0] == _CLS for sample in samples)
    taken = [token for sample in samples for token in sample[1:]]
    everything = [token for document in documents if document for token in [*document, _SEP]]
    assert taken == everything[: len(taken)]
    assert packed.tail == len(everything) - len(taken)
    assert packed.tail < sequence_length - 1


@given(documents=_documents)
def test_every_sample_has_a_token_that_can_be_hidden(documents: list[list[int]]) -> None:
    packed = PackedSamples(np.array(list(join(documents, _SEP)), dtype=np.uint16), 3, _CLS)
    assert all((packed[i] >= 5).any() for i in range(len(packed)))


def test_indices_outside_are_refused() -> None:
    packed = PackedSamples(np.arange(10), 6, _CLS)
    assert len(packed) == 2
    for index in (-1, 2):
        with pytest.raises(IndexError):
            packed[index]


def test_too_short_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence_length is 2"):
        PackedSamples(np.arange(10), 2, _CLS)
