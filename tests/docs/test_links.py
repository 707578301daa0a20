"""Links lead somewhere: files of the repository, and headings in them. (`make docs` checks them once more.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name, prose

_LINK = re.compile(r"\]\(([^()\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file), target


def test_the_readme_leads_to_every_page() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        paths = [target.partition("#")[0] for target in _LINK.findall(prose(page)) if "://" not in target]
        found = {(page.parent / path).resolve() for path in paths if path.endswith(".md")}
        waiting += found - seen
    assert seen == set(PAGES)


def test_every_picture_is_shown() -> None:
    shown = {
        (page.parent / target).resolve() for page in PAGES for target in _LINK.findall(prose(page)) if ".png" in target
    }
    folders = ("docs", "examples/*", "benchmarks/results")
    assert shown == {picture for folder in folders for picture in ROOT.glob(f"{folder}/*.png")}


def test_the_navigation_has_every_page() -> None:
    conf = (ROOT / "docs/conf.py").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert f'"docs/{page.stem}"' in conf
