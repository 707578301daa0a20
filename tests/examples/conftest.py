"""A small text, made once, and a model that trains on it in a second."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.bert import TextData

_SENTENCE = "the quick brown fox jumps over a lazy dog while rain falls on grey roofs and cats sleep near warm stoves"


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of 20 to 120 words."""
    draw, words = random.Random(0), _SENTENCE.split()
    texts = [" ".join(draw.choices(words, k=draw.randint(20, 120))) + "." for _ in range(60)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(texts))
    return path


@pytest.fixture(scope="session")
def cache_dir(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    TextData([str(text_file)], vocab_size=128, cache_dir=str(folder)).prepare_data()
    return folder


@pytest.fixture
def text_data(text_file: Path, cache_dir: Path) -> Callable[..., TextData]:
    """Makes a DataModule of the small text."""

    def make(**options: Any) -> TextData:
        defaults = {"vocab_size": 128, "sequence_length": 16, "micro_batch_size": 8, "cache_dir": str(cache_dir)}
        data = TextData([str(text_file)], **{**defaults, **options})
        data.prepare_data()
        return data

    return make
