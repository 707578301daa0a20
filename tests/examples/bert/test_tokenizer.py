"""The vocabulary: the same in every process, and never larger than asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.bert.tokenizer import CLS_ID, MASK_ID, SEP_ID, SPECIAL_TOKENS, train_tokenizer

_ROOT = Path(__file__).parents[3]
_TRAIN = """
from examples.bert.text import documents
from examples.bert.tokenizer import train_tokenizer
texts = list(documents(None))[:12]
print(train_tokenizer(lambda: texts, 1500).to_str())
"""


def test_two_processes_train_the_same_vocabulary() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _TRAIN],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(_ROOT)},
            stdout=subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]
    one, two = (process.communicate(timeout=60)[0] for process in processes)
    assert len(one) > 10_000  # not two empty answers
    assert one == two


def test_special_tokens_come_first() -> None:
    tokenizer = train_tokenizer(lambda: ["some words, some more words"], 64)
    assert [tokenizer.id_to_token(i) for i in range(5)] == list(SPECIAL_TOKENS)
    assert tokenizer.token_to_id("[CLS]") == CLS_ID
    assert tokenizer.token_to_id("[SEP]") == SEP_ID
    assert tokenizer.token_to_id("[MASK]") == MASK_ID


def test_frequent_words_become_one_token_and_every_known_character_is_kept() -> None:
    tokenizer = train_tokenizer(lambda: ["banana banana banana cab"] * 5, 64)
    assert tokenizer.encode("banana").tokens == ["banana"]
    assert tokenizer.encode("Banana").tokens == ["banana"]
    assert tokenizer.encode("nab").ids.count(tokenizer.token_to_id("[UNK]")) == 0
    assert tokenizer.decode(tokenizer.encode("nab cab").ids) == "nab cab"


@pytest.mark.parametrize("vocab_size", [16, 100, 200])
def test_a_text_of_many_characters_does_not_burst_the_vocabulary(vocab_size: int) -> None:
    rare = " ".join(chr(0x4E00 + i) for i in range(300))  # each once, each a word of its own
    tokenizer = train_tokenizer(lambda: [rare, "common words " * 50], vocab_size)
    assert tokenizer.get_vocab_size() <= vocab_size
    assert max(tokenizer.get_vocab().values()) == tokenizer.get_vocab_size() - 1
    assert tokenizer.encode(chr(0x4E00 + 299)).tokens == ["[UNK]"]
    assert "[UNK]" not in tokenizer.encode("o").tokens
