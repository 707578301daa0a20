"""Every page that is read: the README, `docs/`, and what stands beside the code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "benchmarks", "benchmarks/results", "callbacks", "strategies", "examples/*")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block: its page, its language ("" for none), the number of its first line, its text."""

    page: Path
    language: str
    line: int
    text: str

    @property
    def name(self) -> str:
        """What a test of it is called."""
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    """The page's path from the root."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's code blocks of these languages, in order."""
    text = page.read_text()
    found = ((text.count("\n", 0, m.start(2)) + 1, m[1], m[2]) for m in _FENCE.finditer(text))
    return [Block(page, language, line, code) for line, language, code in found if language in languages]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text())
