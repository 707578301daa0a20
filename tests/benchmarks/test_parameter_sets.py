"""The shapes are those of the models that they are named after."""

from __future__ import annotations

from math import prod

import pytest
import torch

from benchmarks.parameter_sets import SETS


def test_bert_large_is_the_model_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    with torch.device("meta"):
        model = transformers.BertForPreTraining(config)
    assert sorted(SETS["bert-large"]) == sorted(tuple(p.shape) for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("bert-large", 398, 336_226_108),
        ("cpu", 64, 50_384_896),
        ("small", 90, 4_835_648),
        ("many", 5_000, 680_000),
        ("resnet50", 161, 25_557_032),
        ("tiny", 6, 40_608),
    ],
)
def test_how_many_there_are(name: str, tensors: int, elements: int) -> None:
    assert (len(SETS[name]), sum(map(prod, SETS[name]))) == (tensors, elements)
