"""The optimizer that docs/adding_an_optimizer.md adds is added, by what the page says alone, and the tests that follow pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "adding_an_optimizer.md"
TESTS = [
    "tests/optim/test_registry.py",
    "tests/optim/test_contract.py",
    "tests/optim/test_nonfinite.py",
    "tests/optim/test_groups.py",
    "tests/optim/test_state_dict.py",
]
USER = """
import torch
from torch import nn
from lightning_scale.optim import Signum
model = nn.Linear(4, 2)
optimizer = Signum(model.named_parameters(), lr=0.01)
model(torch.ones(3, 4)).sum().backward()
before = model.weight.detach().clone()
optimizer.step()
assert torch.equal(model.weight, before - 0.01)
try:
    other = Signum([nn.Parameter(torch.ones(2), requires_grad=True)], fused=True)
    other.param_groups[0]["params"][0].grad = torch.ones(2)
    other.step()
except ValueError as error:
    print(error)
"""


def added(root: Path) -> None:
    """Apply the page's blocks to a copy of the repository."""
    for block in blocks(PAGE, "py", "text"):
        first, _, text = block.text.partition("\n")
        file, _, after = first.removeprefix("# ").partition(", after: ")
        path = root / file
        if not after:
            assert not path.exists(), file
            path.write_text(text)
            continue
        lines = path.read_text().split("\n")
        places = [i for i, line in enumerate(lines) if line == after]
        assert len(places) == 1, f"{file} has {len(places)} lines {after!r}"
        lines[places[0] + 1 : places[0] + 1] = text.removesuffix("\n").split("\n")
        path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("lightning_scale", "tests", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    added(copy)
    return copy


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=root, env=env, capture_output=True, text=True, timeout=280)


def test_a_user_can_import_it(root: Path) -> None:
    done = run(root, "-c", USER)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Signum has no Triton kernels: leave fused=True out.\n"


@pytest.mark.timeout(300)
def test_the_rows_bring_its_tests(root: Path) -> None:
    """Those that name it alone: the others are run elsewhere."""
    done = run(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "Signum or holds or equations", *TESTS)
    assert done.returncode == 0, done.stdout[-4000:]
    passed = int(done.stdout.rpartition(" passed")[0].split()[-1])
    assert passed > 50


def test_a_missing_row_is_noticed(root: Path) -> None:
    path = root / "tests" / "optim" / "equations.py"
    whole = path.read_text()
    path.write_text("\n".join(line for line in whole.split("\n") if '"Signum"' not in line))
    try:
        done = run(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS[0], "-k", "has_its_equations")
    finally:
        path.write_text(whole)
    assert done.returncode == 1 and "1 failed" in done.stdout


def test_contributors_are_sent_there() -> None:
    assert "docs/adding_an_optimizer.md" in (ROOT / "CONTRIBUTING.md").read_text()
