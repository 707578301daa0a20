"""Tokens on disk: made once, whole, and again when something changed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from examples.bert import prepared
from examples.bert.tokenizer import SEP_ID, SPECIAL_TOKENS
from lightning_scale.errors import ConfigurationError

_ROOT = Path(__file__).parents[3]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "own.txt"
    path.write_text("\n\n".join(f"Document {i} says [MASK] and [SEP] aloud." for i in range(10)))
    return str(path)


def test_tokens_are_the_documents_with_sep_after_each(tmp_path: Path, text: str) -> None:
    prepared.prepare(tmp_path / "out", [text], 128, 0.2)
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    result = prepared.load(tmp_path / "out")
    spoken = {}
    for name, tokens in (("training", result.training), ("validation", result.validation)):
        ids = tokens[0 : len(tokens)].tolist()
        assert ids[-1] == SEP_ID
        documents = [[]]
        for i in ids[:-1]:
            documents.append([]) if i == SEP_ID else documents[-1].append(i)
        spoken[name] = [tokenizer.decode(d, skip_special_tokens=False).replace(" ", "") for d in documents]
    # Brackets in the text are words; no special token but the one after each document.
    expected = [f"document{i}says[mask]and[sep]aloud." for i in range(10)]
    assert spoken == {
        "training": [e for i, e in enumerate(expected) if i not in (4, 9)],
        "validation": ["document[UNK]says[mask]and[sep]aloud."] * 2,  # no training document has a 4 or a 9
    }


def test_counts_are_those_of_the_training_tokens(cache_dir: Path) -> None:
    result = prepared.load(cache_dir)
    tokens = result.training[0 : len(result.training)]
    expected = np.zeros(len(result.training_counts), dtype=int)
    np.add.at(expected, tokens, 1)
    assert result.training_counts.tolist() == expected.tolist()


def test_the_same_text_is_not_prepared_again(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "out"
    prepared.prepare(folder, [text], 128, 0.2)
    before = _inodes(folder)
    prepared.prepare(folder, [text], 128, 0.2)
    assert _inodes(folder) == before
    assert set(before) == {"tokenizer.json", "training.bin", "validation.bin", "made_from.json"}


@pytest.mark.parametrize("change", ["text", "vocab_size", "validation_share"])
def test_a_change_is_noticed(tmp_path: Path, text: str, change: str) -> None:
    folder = tmp_path / "out"
    prepared.prepare(folder, [text], 128, 0.2)
    before, old = _inodes(folder), prepared.load(folder).fingerprint
    if change == "text":
        Path(text).write_text(Path(text).read_text().replace("Document 3", "Document 4"))
    prepared.prepare(
        folder, [text], 96 if change == "vocab_size" else 128, 0.3 if change == "validation_share" else 0.2
    )
    assert prepared.load(folder).fingerprint != old
    assert all(inode != before[name] for name, inode in _inodes(folder).items())


def test_a_broken_off_preparation_is_not_taken_for_a_whole_one(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    prepared.prepare(folder, [text], 128, 0.2)
    whole = _files(folder)
    prepared.prepare(folder, [text], 96, 0.2)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_write_tokens", fail)
        with pytest.raises(KeyboardInterrupt):
            prepared.prepare(folder, [text], 128, 0.2)
    with pytest.raises(ConfigurationError, match="no prepared text"):
        prepared.load(folder)
    prepared.prepare(folder, [text], 128, 0.2)
    assert _files(folder) == whole  # and no temporary file is left


def test_processes_that_prepare_at_the_same_time_agree(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "out"
    code = (
        f"from examples.bert.prepared import *; prepare({str(folder)!r}, [{text!r}], 128, 0.2); load({str(folder)!r})"
    )
    env = {**os.environ, "PYTHONPATH": str(_ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    prepared.prepare(tmp_path / "alone", [text], 128, 0.2)
    assert _files(folder) == _files(tmp_path / "alone")


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("one document only " * 50)
    with pytest.raises(ConfigurationError, match="too few documents to leave any for validation: use more text"):
        prepared.prepare(tmp_path / "out", [str(path)], 64, 0.2)
    with pytest.raises(ConfigurationError, match="no prepared text"):
        prepared.load(tmp_path / "out")


def test_tokens_travel_to_workers_as_a_path(cache_dir: Path) -> None:
    tokens = prepared.load(cache_dir).training
    sent = pickle.dumps(tokens)
    assert len(sent) < 500 < len(tokens)
    assert pickle.loads(sent)[5:50].tolist() == tokens[5:50].tolist()


def test_the_fingerprint_file_is_plain_json(cache_dir: Path) -> None:
    facts = json.loads((cache_dir / "made_from.json").read_text())
    assert facts["vocab_size"] == 128
    assert len(facts["training_counts"]) > len(SPECIAL_TOKENS)
