"""BERT that guesses hidden words of the documentation that comes with Python."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from examples.bert import prepared
from examples.bert.packing import PackedSamples
from examples.bert.samples import MaskedSamples
from examples.bert.token_file import TokenFile
from examples.bert.tokenizer import CLS_ID
from examples.scaling_study.tasks.task import Samples, Size, Task, TaskData

_LENGTH = 32
_VALIDATION_SHARE = 0.15


@dataclass(frozen=True)
class _Scale:
    vocabulary: int
    layers: int
    width: int
    heads: int
    base_batch_size: int
    epochs: int
    training: int | None
    """Samples; None for all of the text."""
    held_out: int | None


# The small vocabulary is letters and syllables: of whole words a few dozen steps teach nothing.
_SCALES: dict[Size, _Scale] = {
    "small": _Scale(128, layers=1, width=32, heads=2, base_batch_size=8, epochs=8, training=1280, held_out=800),
    "large": _Scale(4096, layers=4, width=256, heads=4, base_batch_size=32, epochs=20, training=None, held_out=None),
}


def bert_task(size: Size) -> Task:
    """Masked-language modelling; every pass hides other pieces, the same ones whatever the batch, optimizer and seed."""
    scale = _SCALES[size]
    return Task(
        "bert",
        "BERT, hidden word pieces",
        scale.base_batch_size,
        scale.epochs,
        load=partial(_load, scale),
        network=partial(_network, scale),
    )


def _load(scale: _Scale, folder: Path) -> TaskData:
    """Every second held-out sample is for tuning, the others for the test."""
    folder = folder / "text"
    prepared.prepare(folder, None, scale.vocabulary, _VALIDATION_SHARE)
    text = prepared.load(folder)
    training, held_out = _packed(text.training, scale.training), _packed(text.validation, scale.held_out)
    masked = _in_memory(held_out, scale.vocabulary, key=1, passes=1)
    tuning, test = (Samples(tuple(each[i::2] for each in masked.inputs), masked.targets[i::2]) for i in (0, 1))
    return TaskData(
        _in_memory(training, scale.vocabulary, key=0, passes=scale.epochs),
        len(training),
        tuning,
        test,
        classes=scale.vocabulary,
    )


def _packed(tokens: TokenFile, most: int | None) -> PackedSamples:
    """The text's first samples."""
    return PackedSamples(tokens[: None if most is None else most * (_LENGTH - 1)], _LENGTH, CLS_ID)


def _in_memory(samples: PackedSamples, vocabulary: int, key: int, passes: int) -> Samples:
    masked = MaskedSamples(samples, vocabulary, (key,))
    items = [masked[position] for position in range(passes * len(samples))]
    ids, positions, targets = (
        torch.stack([item[name] for item in items]) for name in ("input_ids", "positions", "targets")
    )
    return Samples((ids, positions), targets)


def _network(scale: _Scale) -> nn.Module:
    from transformers import BertConfig

    from examples.bert.network import BertAtPositions

    return BertAtPositions(
        BertConfig(
            vocab_size=scale.vocabulary,
            hidden_size=scale.width,
            num_hidden_layers=scale.layers,
            num_attention_heads=scale.heads,
            intermediate_size=4 * scale.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=_LENGTH,
        )
    )
