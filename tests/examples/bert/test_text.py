"""Documents and the held-out share of them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.bert.text import documents, split
from lightning_scale.errors import ConfigurationError


def test_the_default_text_is_pythons_topics_in_the_order_of_their_names() -> None:
    texts = list(documents(None))
    assert len(texts) == len(topics)
    for name, text in zip(sorted(topics), texts, strict=True):
        letters = [c for c in topics[name] if c.isalnum()]
        assert [c for c in text if c.isalnum()] == letters


def test_the_default_text_has_no_drawn_lines() -> None:
    assert any("----" in text for text in topics.values())
    assert not any("----" in text for text in documents(None))


def test_documents_of_a_file_end_at_blank_lines(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("\n\na 1\na 2\n   \n\n\nb\n", encoding="utf-8")
    two.write_text("ç\r\n\r\nd", encoding="utf-8-sig")
    assert list(documents([str(one), str(two)])) == ["a 1\na 2\n", "b\n", "ç\n", "d"]


def test_a_missing_file_is_refused_before_the_others_are_read(tmp_path: Path) -> None:
    there = tmp_path / "there.txt"
    there.write_text("text")
    with pytest.raises(ConfigurationError, match=r"there is no file .*gone\.txt: write the path"):
        next(documents([str(there), str(tmp_path / "gone.txt")]))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no file"):
        next(documents([str(tmp_path)]))


@pytest.mark.parametrize("content", ["", " \n\n \t\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"empty\.txt holds no text: fill it"):
        list(documents([str(file)]))


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("Straße".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"latin\.txt is not UTF-8 text .*: convert it"):
        list(documents([str(file)]))


def test_an_empty_list_of_files_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="empty list"):
        next(documents([]))


@given(count=st.integers(0, 300), hundredths=st.integers(1, 99))
def test_the_held_out_share_is_exact_and_even(count: int, hundredths: int) -> None:
    texts = [str(i) for i in range(count)]
    parts = list(split(texts, hundredths / 100))
    assert [text for _, text in parts] == texts
    held_out = [i for i, (is_held_out, _) in enumerate(parts) if is_held_out]
    share = Fraction(hundredths, 100)
    assert len(held_out) == math.floor(count * share)
    gaps = [b - a for a, b in itertools.pairwise(held_out)]
    assert all(math.floor(1 / share) <= gap <= math.ceil(1 / share) for gap in gaps)
