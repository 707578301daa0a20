"""Where the text comes from, and which of its documents are held out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from lightning_scale.errors import ConfigurationError

_RULE = re.compile(r"([^\w\s])\1{3,}")  # the lines that tables are drawn with: a fifth of some documents


def documents(files: Sequence[str] | None) -> Iterator[str]:
    """The documents, one after another, in an order that never changes.

    Args:
        files: UTF-8 text files, whose documents end at blank lines; None for the documentation that comes with CPython
            (``pydoc_data.topics``: one document a topic; of a line of dashes or the like one dash is left).

    Raises:
        ConfigurationError: for a file that is missing, empty or not UTF-8.
    """
    return _python_topics() if files is None else _from_files(files)


def split(texts: Iterable[str], validation_share: float) -> Iterator[tuple[bool, str]]:
    """Each document, and whether it is held out for validation.

    Held-out documents lie at an even stride, so that the split follows from a document's number alone and n documents
    give ⌊n · share⌋ to validation.

    Args:
        texts: The documents.
        validation_share: The share of documents to hold out, between 0 and 1.
    """
    share = Fraction(str(validation_share))  # as written: 0.1 in binary would move the stride now and then
    for number, text in enumerate(texts):
        yield math.floor((number + 1) * share) > math.floor(number * share), text


def _python_topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ConfigurationError(
            "this Python comes without its own documentation (pydoc_data): name text files in data.files."
        ) from None
    for name in sorted(topics):
        yield _RULE.sub(r"\1", topics[name])


def _from_files(files: Sequence[str]) -> Iterator[str]:
    if not files:
        raise ConfigurationError("data.files is an empty list: name text files, or leave it out for Python's own text.")
    for name in files:  # all of them, before the first document is handed out
        if not Path(name).is_file():
            raise ConfigurationError(
                f"there is no file {name}: write the path of a UTF-8 text file in data.files, or leave files out for"
                " Python's own text."
            )
    for name in files:
        found = False
        for text in _documents_of(name):
            found = True
            yield text
        if not found:
            raise ConfigurationError(f"{name} holds no text: fill it, or take it out of data.files.")


def _documents_of(name: str) -> Iterator[str]:
    lines: list[str] = []
    try:
        with open(name, encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines)
                    lines = []
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{name} is not UTF-8 text ({error.reason}): convert it, for example with `iconv -t UTF-8`."
        ) from None
    if lines:
        yield "".join(lines)
