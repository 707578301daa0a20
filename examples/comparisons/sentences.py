"""Sentences of a text, each a sample of its own length: micro-batches with unequal numbers of hidden tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

from examples.bert.data import TRAINING, VALIDATION, TextData
from examples.bert.masking import IGNORED, count_masked
from examples.bert.samples import MaskedSamples
from examples.bert.token_file import TokenFile
from examples.bert.tokenizer import CLS_ID, PAD_ID, SEP_ID
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.data.ranks import rank, world_size

_SHORTEST = 4  # tokens; what is between the dots of "..." is no sentence


class Sentences(Sequence[npt.NDArray[np.int64]]):
    """[CLS] and the tokens of one sentence, cut where it is longer than a sample.

    Args:
        stream: [tokens].
        end_ids: Tokens that end a sentence.
        longest: Tokens in a sample at most, [CLS] included.
    """

    def __init__(self, stream: npt.NDArray[Any], end_ids: Sequence[int], longest: int) -> None:
        ends = np.flatnonzero(np.isin(stream, end_ids)) + 1
        pieces = [piece[: longest - 1] for piece in np.split(stream, ends) if len(piece) >= _SHORTEST]
        even = len(pieces) - len(pieces) % 2  # two ranks get equally many
        self._sentences = [np.concatenate([[CLS_ID], piece]).astype(np.int64) for piece in pieces[:even]]

    def __len__(self) -> int:
        return len(self._sentences)

    def __getitem__(self, index: Any) -> Any:
        return self._sentences[index]


class PaddedSamples(MaskedSamples):
    """15 % of each sentence's tokens hidden, as many as it has; filled up to one length."""

    def __init__(self, samples: Sentences, length: int, vocab_size: int, key: tuple[int, ...], held_out: bool) -> None:
        super().__init__(samples, vocab_size, key, held_out)
        self.length = length

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        item = super().__getitem__(position)
        places = count_masked(self.length)
        return {
            "input_ids": _filled(item["input_ids"], self.length, PAD_ID),
            "positions": _filled(item["positions"], places, 0),
            "targets": _filled(item["targets"], places, IGNORED),
        }


class SentenceData(TextData):
    """`TextData` with a sample for each sentence, and loaders as PyTorch has them: a micro-batch's mean loss is over as many
    hidden tokens as its sentences happen to have, and an epoch's last micro-batch is short.

    Args:
        resumable: Take the samples in `ResumableBatchSampler`'s order, not in torch's own.
        **options: As for `TextData`.
    """

    def __init__(self, resumable: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.resumable = resumable

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = self._padded(self.text.training, TRAINING)
        if self.resumable:
            order = ResumableBatchSampler(len(dataset), self.micro_batch_size, seed=self.seed)
            return DataLoader(dataset, batch_sampler=order)
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, world_size(), rank(), seed=self.seed)
        return DataLoader(dataset, self.micro_batch_size, sampler=sampler)

    def held_out(self) -> MaskedSamples:
        return self._padded(self.text.validation, VALIDATION)

    def _padded(self, tokens: TokenFile, part: int) -> PaddedSamples:
        words = Tokenizer.from_file(str(Path(self.cache_dir) / "tokenizer.json"))
        stop = words.token_to_id(".")
        ends = (SEP_ID,) if stop is None else (stop, SEP_ID)
        sentences = Sentences(tokens[:], ends, self.sequence_length)
        vocabulary = len(self.text.training_counts)
        return PaddedSamples(sentences, self.sequence_length, vocabulary, (self.seed, part), part == VALIDATION)


def _filled(values: Tensor, length: int, value: int) -> Tensor:
    return F.pad(values, (0, length - len(values)), value=value)
