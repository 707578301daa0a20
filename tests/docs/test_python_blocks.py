"""The Python that pages show runs: block after block of a page, beside a `model` that is the reader's own."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from torch import nn

from tests.distributed.meshes import FSDP2
from tests.docs.pages import PAGES, ROOT, blocks, name

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page", "model": nn.Linear(4, 2)}
    for block in blocks(page, "python"):
        if "zero" in block.text.lower():
            pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
        if "FSDP2" in block.text and not FSDP2:
            pytest.skip("FSDP2Strategy needs torch 2.7")
        code = "\n" * (block.line - 1) + block.text  # so that errors have the page's line numbers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, str(page), "exec"), names)


def test_the_readme_shows_python() -> None:
    assert ROOT / "README.md" in WITH_PYTHON
