"""The stages of a session on a GPU: what each runs, where its output goes, and its share of the time."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.session import ROOT, Stage

NAMES = ("versions", "tests", "steps", "checks", "float32", "bf16", "constants")
# Of the benchmark in float32 and with bf16-master; there with all optimizers in 8 bits.
_FLOAT32 = ("torch AdamW*", "* fused=True", "LAMB* fused=True, no test", "timm Lamb", "torchao*")
_BF16 = ("LAMB fused=True*", "LARS fused=True", "LAMB8bit fused=True*")
_UNINDENTED = r"\S"
_NOT_WELL = r"- .*: fails: |\| ✗"
_PYTESTS_LAST_LINE = r"(=+ )?.*\d+ (passed|failed|skipped|errors?)\b.* in [\d.]+s"


def stages(folder: Path, work: Path, rehearse: bool) -> list[Stage]:
    """All stages, in their order.

    Args:
        folder: Where the results go.
        work: A folder for what is not kept.
        rehearse: Whether a CPU and small tensors stand in for the GPU and BERT-large's.
    """
    # Here, for this module is read before it is known whether this Python has torch.
    from benchmarks.rows import simplest
    from lightning_scale.optim.registry import REGISTRY

    eight_bit = tuple(f"{entry.name} fused=True" for entry in REGISTRY.values() if entry.eight_bit)
    # A rehearsal has some rows alone, for in Triton's interpreter a step takes half a second.
    one = (f"{simplest().name} fused=True",)
    rehearsed = {
        "steps": ("LAMB fused=True", "LARS fused=True", *eight_bit),
        "checks": one,
        "constants": ("LAMB fused=True", "AdamW8bit fused=True", "--seconds=16"),
    }
    device, parameters = ("cpu", "tiny") if rehearse else ("cuda", "bert-large")
    where = ("--device", device, "--set", parameters)

    def module(name: str, *options: str) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.{name}", *options]

    def timed(name: str) -> Callable[[float], list[str]]:
        names = rehearsed[name] if rehearse else ()
        return lambda limit: module(f"gpu.{name}", *where, "--seconds", f"{0.9 * limit:.0f}", *names)

    def benchmark(name: str, share: float, only: Sequence[str], dtype: str) -> Stage:
        def command(limit: float) -> list[str]:
            names = one if rehearse else only
            size = ("--rounds", "1", "--least", "1") if rehearse else ("--rounds", "60", "--flush", f"{_flush()}")
            # Before the steps that are timed, everything is compiled and checked.
            much = ("--dtype", dtype, "--seconds", f"{0.3 * limit:.0f}", *size, "--output", f"{work / name}")
            return module("optimizers", *where, *much, "--only", *names)

        collect = partial(_collect, work / name, folder, name)
        return Stage(name, f"{name}.md", share, command, _NOT_WELL, collect)

    return [
        Stage("versions", "steps.txt", 10, lambda _: module("gpu.versions", "--device", device), _UNINDENTED),
        Stage("tests", "tests.txt", 125, lambda _: _pytest(rehearse), _PYTESTS_LAST_LINE),
        Stage("steps", "steps.txt", 100, timed("steps"), _UNINDENTED),
        Stage("checks", "steps.txt", 55, timed("checks"), _UNINDENTED),
        benchmark("float32", 90, _FLOAT32, "float32"),
        benchmark("bf16", 50, (*_BF16, *eight_bit), "bf16-master"),
        Stage("constants", "constants.txt", 40, timed("constants"), _UNINDENTED),
    ]


def environment(work: Path, rehearse: bool) -> dict[str, str]:
    """The environment variables of the stages: this process's, with caches in a folder for what is not kept."""
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found |= {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "TRITON_CACHE_DIR": str(work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # A process that only asks whether there is a GPU can be forked after that.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
    return found | ({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if rehearse else {})


def files_with_gpu_tests(tests: Path) -> list[Path]:
    """The files whose tests include some for a GPU. No other is to be imported: some need packages that may be missing.

    They write the marker, or a name that any file gives to something made with it.
    """
    marker = "mark.gpu"
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(tests.rglob("*.py"))}
    statements = [statement for text in texts.values() if marker in text for statement in ast.parse(text).body]
    made = [s.targets for s in statements if isinstance(s, ast.Assign) and marker in ast.unparse(s.value)]
    names = [marker, *(target.id for targets in made for target in targets if isinstance(target, ast.Name))]
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    return [path for path, text in texts.items() if path.name.startswith("test_") and pattern.search(text)]


def _pytest(rehearse: bool) -> list[str]:
    options = ["-m", "gpu", "-q", "--tb=short", "--maxfail=40", "--durations=8", "-p", "no:cacheprovider"]
    options += ["--continue-on-collection-errors"]  # Of a file whose packages are missing.
    if find_spec("xdist") is not None and not rehearse:  # In a rehearsal all of them are skipped.
        workers = min(os.cpu_count() or 1, 12, _memory() >> 33)  # One for 8 GiB.
        options += ["-n", f"{max(1, workers)}"]
    if find_spec("pytest_timeout") is not None:
        options += ["--timeout=100"]
    return [sys.executable, "-m", "pytest", *options, *map(str, files_with_gpu_tests(ROOT / "tests"))]


def _flush() -> int:
    """MiB whose copy takes longer than the host takes for a step, as far as they fit in beside all optimizers' state."""
    return min(8192, _memory() >> 24)


def _memory() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def _collect(written: Path, folder: Path, name: str) -> None:
    """Bring a benchmark's table and numbers to where the results are; the table without its picture."""
    for file in written.glob("*.json"):
        shutil.copyfile(file, folder / f"{name}.json")
    for file in written.glob("*.md"):
        table, _, _ = file.read_text(encoding="utf-8").partition("\n![")
        (folder / f"{name}.md").write_text(table.rstrip() + "\n", encoding="utf-8")
