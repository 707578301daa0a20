"""A text's tokenizer and tokens on disk: made once, reused while text and settings stay the same."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from examples.bert.packing import join
from examples.bert.text import documents, split
from examples.bert.token_file import TokenFile
from examples.bert.tokenizer import SEP_ID, SPECIAL_TOKENS, train_tokenizer
from lightning_scale.errors import ConfigurationError

_FORMAT = 1  # raise it when the same text would give other files
_DOCUMENTS_AT_A_TIME = 1024


@dataclass(frozen=True)
class PreparedText:
    """What `prepare` left in a folder."""

    training: TokenFile
    validation: TokenFile
    training_counts: npt.NDArray[np.int64]
    """[vocabulary]: how often each token is in the training text."""
    fingerprint: str
    """Names the text and the settings; another one means another vocabulary."""


def prepare(folder: str | Path, files: Sequence[str] | None, vocab_size: int, validation_share: float) -> None:
    """Write ``tokenizer.json``, the tokens and ``made_from.json`` into a folder, where they are not there already.

    Every file appears whole or not at all, ``made_from.json`` last; two processes that do this at the same time write
    the same bytes.

    Raises:
        ConfigurationError: for text that is missing, or too little to split.
    """
    folder = Path(folder)
    fingerprint = _fingerprint(files, vocab_size, validation_share)
    made_from = folder / "made_from.json"
    present = _read(made_from).get("fingerprint")
    if present == fingerprint:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if present is not None:  # not unconditionally: another process may have finished the same work a moment ago
        made_from.unlink(missing_ok=True)

    def part(held_out: bool) -> Iterator[str]:
        return (text for is_validation, text in split(documents(files), validation_share) if is_validation == held_out)

    tokenizer = train_tokenizer(lambda: part(held_out=False), vocab_size)
    with _whole_file(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    counts = [_write_tokens(folder / f"{name}.bin", tokenizer, part(held_out)) for name, held_out in _PARTS]
    for (name, _), count in zip(_PARTS, counts, strict=True):
        if not count.sum():
            raise ConfigurationError(
                f"the text has too few documents to leave any for {name}: use more text, put blank lines between its"
                " documents, or change data.validation_share."
            )
    facts = {"fingerprint": fingerprint, "vocab_size": vocab_size, "training_counts": counts[0].tolist()}
    with _whole_file(made_from) as file:
        file.write(json.dumps(facts).encode())


_PARTS = (("training", False), ("validation", True))


def load(folder: str | Path) -> PreparedText:
    """Open what `prepare` wrote.

    Raises:
        ConfigurationError: where it has not, or not to the end.
    """
    folder = Path(folder)
    facts = _read(folder / "made_from.json")
    if not facts:
        raise ConfigurationError(f"{folder} holds no prepared text: call prepare_data() first, as Trainer.fit does.")
    return PreparedText(
        TokenFile(str(folder / "training.bin")),
        TokenFile(str(folder / "validation.bin")),
        np.array(facts["training_counts"], dtype=np.int64),
        facts["fingerprint"],
    )


def _fingerprint(files: Sequence[str] | None, vocab_size: int, validation_share: float) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {vocab_size} {validation_share}".encode())
    for text in documents(files):
        encoded = text.encode()
        digest.update(f"\n{len(encoded)}\n".encode() + encoded)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return facts


def _write_tokens(path: Path, tokenizer: Tokenizer, texts: Iterator[str]) -> npt.NDArray[np.int64]:
    """Write documents' tokens, [SEP] after each; returns how often each token occurs."""
    tokenizer.encode_special_tokens = True  # "[MASK]" in someone's text is three words, not the special token
    counts = np.zeros(max(tokenizer.get_vocab_size(), len(SPECIAL_TOKENS)), dtype=np.int64)
    with _whole_file(path) as file:
        while batch := list(itertools.islice(texts, _DOCUMENTS_AT_A_TIME)):
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            tokens = np.fromiter(join((e.ids for e in encoded), SEP_ID), dtype=TokenFile.dtype)
            counts += np.bincount(tokens, minlength=len(counts))
            file.write(tokens.tobytes())
    return counts


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when it is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp's file is readable by its owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
