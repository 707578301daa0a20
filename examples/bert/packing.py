"""Documents end to end, cut into samples of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def join(documents: Iterable[Sequence[int]], sep_id: int) -> Iterator[int]:
    """All documents' tokens with a [SEP] after each document; documents without tokens leave nothing."""
    for document in documents:
        if document:
            yield from document
            yield sep_id


class PackedSamples(Sequence[npt.NDArray[np.int64]]):
    """Samples of exactly ``sequence_length`` tokens: [CLS], then the next ``sequence_length - 1`` tokens of the stream.

    No token is in two samples, and none is lost but the last ``tail`` ones, which fill no sample. Nothing is copied: one
    stream serves every sequence length.

    Args:
        stream: [tokens], integers: what `join` gives, as an array or anything else that is sliced like one.
        sequence_length: Tokens in a sample, [CLS] included; at least 3, for a [SEP] may come second.
        cls_id: The id of [CLS].

    Raises:
        ValueError: for a sequence length below 3.
    """

    def __init__(self, stream: Any, sequence_length: int, cls_id: int) -> None:
        if sequence_length < 3:
            raise ValueError(f"sequence_length is {sequence_length}: give at least 3 tokens.")
        self.stream = stream
        self.sequence_length = sequence_length
        self.cls_id = cls_id
        self._count, self.tail = divmod(len(stream), sequence_length - 1)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(f"sample {index} of {self._count}")
        step = self.sequence_length - 1
        sample = np.empty(self.sequence_length, dtype=np.int64)
        sample[0] = self.cls_id
        sample[1:] = self.stream[index * step : (index + 1) * step]
        return sample
