"""What the compiler makes of the kernels, as a table that is committed, so that a worse compile is seen in a diff.

``python -m tests.optim.triton.table`` compiles all forms that training usually launches, for sm_80 and sm_90, by every version
of Triton that is found (`make triton-versions` installs the others beside the environment), and writes a page.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "benchmarks" / "results" / "compiled-kernels.md"
CAPABILITIES = (80, 90)
THREADS_OF_A_WARP = 32
OTHER_VERSIONS = ("3.2.0", "3.6.0")
"""The oldest Triton that is allowed, and the one that torch 2.11 brings; beside the one in the environment."""


def folders() -> dict[str, Path | None]:
    """Where each version of Triton lies; None: in the environment."""
    import triton

    beside = {version: Path(sys.prefix) / f"triton-{version}" for version in OTHER_VERSIONS}
    return {**{v: folder for v, folder in beside.items() if folder.is_dir()}, triton.__version__: None}


def compile_all(folder: Path | None, *arguments: str) -> list[dict[str, Any]]:
    """What `compiled` prints, of a version of Triton in a process of its own, without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path if folder is None else [str(folder), *path])
    with tempfile.TemporaryDirectory() as cache:
        environment["TRITON_CACHE_DIR"] = cache
        done = subprocess.run(
            [sys.executable, "-m", "tests.optim.triton.compiled", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def elements(row: dict[str, Any]) -> int:
    """That a thread takes in one turn of a loop."""
    constants = row["constants"]
    block = constants["ROWS"] * 256 if "ROWS" in constants else constants["BLOCK"]
    return int(block // (row["warps"] * THREADS_OF_A_WARP))


def cell(row: dict[str, Any]) -> str:
    """Registers, what is spilled, and machine instructions an element of each loop."""
    spilled = row["stack"] + row["local"]
    loops = " + ".join(f"{count / elements(row):.1f}" for count in row["loops"])
    return ", ".join(filter(None, [f"{row['reg']} r", f"{spilled} B SPILLED" if spilled else "", loops]))


def form(row: dict[str, Any]) -> tuple[str, str]:
    """Of which kernel: the step that launches it, and its name."""
    constants = row["constants"]
    said = {"PLAIN": "float32 moments", "APPLY": "second pass"}
    return row["for"], ", ".join([row["kernel"], *(word for key, word in said.items() if constants.get(key))])


def table(versions: dict[str, list[dict[str, Any]]]) -> str:
    """The page, of what `compile_all` found."""
    columns = {
        (v, c): {form(r): cell(r) for r in rows if r["capability"] == c}
        for v, rows in versions.items()
        for c in CAPABILITIES
    }
    forms = list(dict.fromkeys(form(row) for rows in versions.values() for row in rows))
    heads = [f"Triton {version}, sm_{capability}" for version, capability in columns]
    lines = [
        "# The kernels as compilers make them",
        "Registers a thread (r), and machine instructions an element on the shortest way through each loop that reads 16",
        "bytes at a time: pass 1 + pass 2 where one launch has both. Nothing of it was run. `make kernels` writes this page, and",
        "a slow test compares it.",
        "",
        f"| launched by | kernel | {' | '.join(heads)} |",
        f"|---|---|{'---|' * len(heads)}",
    ]
    lines += [f"| {' | '.join([*of, *(cells.get(of, '-') for cells in columns.values())])} |" for of in forms]
    return "\n".join(lines) + "\n"


def made() -> dict[str, list[dict[str, Any]]]:
    """By version of Triton."""
    which = ("usual", ",".join(map(str, CAPABILITIES)), "--instructions")
    return {version: compile_all(folder, *which) for version, folder in folders().items()}


if __name__ == "__main__":
    TABLE.write_text(table(made()))
    print(TABLE)
