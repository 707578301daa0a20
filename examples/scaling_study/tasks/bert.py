"""BERT that guesses hidden words of the documentation that comes with Python."""

from __future__ import annotations

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
_EPOCHS = 10
_VALIDATION_SHARE = 0.15
_VOCABULARY: dict[Size, int] = {"small": 1024, "large": 4096}
_SHAPES: dict[Size, tuple[int, int, int]] = {"small": (1, 64, 2), "large": (4, 256, 4)}
"""Layers, width, heads."""


def bert_task(size: Size) -> Task:
    """Masked-language modelling; every pass hides other words, the same ones whatever the batch, optimizer and seed."""
    return Task(
        "bert",
        "BERT, hidden words",
        base_batch_size=32,
        epochs=_EPOCHS,
        load=partial(_load, vocabulary=_VOCABULARY[size]),
        network=partial(_network, size),
    )


def _load(folder: Path, vocabulary: int) -> TaskData:
    """Every second held-out sample is for tuning, the others for the test."""
    folder = folder / "text"
    prepared.prepare(folder, None, vocabulary, _VALIDATION_SHARE)
    text = prepared.load(folder)
    training, held_out = _packed(text.training), _packed(text.validation)
    masked = _in_memory(held_out, vocabulary, key=1, passes=1)
    return TaskData(
        _in_memory(training, vocabulary, key=0, passes=_EPOCHS),
        len(training),
        *(Samples(tuple(each[i::2] for each in masked.inputs), masked.targets[i::2]) for i in (0, 1)),
        classes=vocabulary,
    )


def _packed(tokens: TokenFile) -> PackedSamples:
    return PackedSamples(tokens, _LENGTH, CLS_ID)


def _in_memory(samples: PackedSamples, vocabulary: int, key: int, passes: int) -> Samples:
    masked = MaskedSamples(samples, vocabulary, (key,))
    items = [masked[position] for position in range(passes * len(samples))]
    ids, positions, targets = (
        torch.stack([item[name] for item in items]) for name in ("input_ids", "positions", "targets")
    )
    return Samples((ids, positions), targets)


def _network(size: Size) -> nn.Module:
    from transformers import BertConfig

    from examples.bert.network import BertAtPositions

    layers, width, heads = _SHAPES[size]
    return BertAtPositions(
        BertConfig(
            vocab_size=_VOCABULARY[size],
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=_LENGTH,
        )
    )
