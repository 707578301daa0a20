"""The commands that pages show: options that there are, files that are there, targets of the Makefile."""

from __future__ import annotations

import contextlib
import io
import re
import shlex

import pytest

from lightning_scale.cli import ScaleCLI
from tests.docs.pages import PAGES, ROOT, Block, blocks, prose

SHOWN = [block for page in PAGES for block in blocks(page, "", "bash", "console")]


def commands(block: Block, program: str) -> list[list[str]]:
    """A block's command lines of a program, in words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [
        shlex.split(line.removeprefix("$ "), comments=True)
        for line in lines
        if line.removeprefix("$ ").startswith(f"{program} ")
    ]


OURS = [
    pytest.param(words[1:], id=f"{block.name}:{number}")
    for block in SHOWN
    for number, words in enumerate(commands(block, "lightning-scale"))
]


@pytest.fixture
def at_the_root(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the repository's folder, with the packages that the command needs."""
    pytest.importorskip("transformers", reason="the examples' packages are not installed")
    if any("zero" in word for word in words):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    monkeypatch.chdir(ROOT)


every_command = pytest.mark.parametrize("words", [words for words in OURS if "my.yaml" not in words.values[0]])


@every_command
@pytest.mark.usefixtures("at_the_root")
def test_the_command_takes_what_pages_write(words: list[str]) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
        ScaleCLI(args=[*words, "--print_config"])  # parses, prints and ends
    assert end.value.code in (0, None)
    assert "trainer:" in printed.getvalue()


@every_command
@pytest.mark.usefixtures("at_the_root")
def test_the_command_would_start(words: list[str]) -> None:
    """Up to its first step, by `plan`, which refuses what `fit` refuses."""
    words = [word for word in words[1:] if not word.startswith("--ckpt_path=")]  # of the same line's first start
    words = [*words, "--picture=null", "--activations=false", "--samples-per-epoch=30000000"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ScaleCLI(args=["plan", *words])
    assert "SCHEDULE" in printed.getvalue()


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shown = {word for block in SHOWN for words in commands(block, "make") for word in words[1:2]}
    named = {target for page in PAGES for target in re.findall(r"`(?:[A-Z]+=\S+ )?make ([a-z-]+)", prose(page))}
    assert {"demo", "test"} <= shown
    assert {"docs", "bench"} <= named
    assert shown | named <= targets


def test_files_that_pages_name_are_there() -> None:
    pattern = re.compile(r"`((?:tests|docs|examples|benchmarks|callbacks|strategies|lightning_scale)/[\w./-]*)`")
    missing = {
        (page.name, path) for page in PAGES for path in pattern.findall(prose(page)) if not (ROOT / path).exists()
    }
    assert not {entry for entry in missing if "NAME" not in entry[1]}
