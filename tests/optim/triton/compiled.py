"""The kernels as GPUs get them, compiled without one: every launch goes through Triton's binder and compiler, and not further.

Run as a program, without Triton's interpreter, it prints as JSON what the compiler made of each kernel:
``python -m tests.optim.triton.compiled usual 90``, or ``every 80,90 --instructions``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.optim.triton.stand_in import driver_of
from tests.optim.triton.variants import OPTIMIZERS, Variant, every, stochastic, take_step, usual


def compiled(variants: Iterable[Variant], capability: int, instructions: bool = False) -> list[dict[str, Any]]:
    """What `look` finds of each kernel that these steps launch, each once, with the first variant that needs it."""
    from triton.runtime.jit import JITFunction

    from lightning_scale.optim.backends import choice
    from lightning_scale.optim.backends import triton as fused

    for module in pkgutil.iter_modules(
        fused.__path__
    ):  # before the patch below: they keep the sizes that a GPU's kernels have
        importlib.import_module(f"{fused.__name__}.{module.name}")
    found: list[dict[str, Any]] = []
    known: set[int] = set()
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if id(kernel) not in known:
            known.add(id(kernel))
            kept.append(kernel)
            row: dict[str, Any] = {"for": variant.name, "capability": capability}
            row["kernel"] = f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}"
            row["constants"] = {
                k: v if isinstance(v, (int, bool)) else str(v) for k, v in options.items() if k.isupper()
            }
            found.append({**row, **look(kernel, instructions)})

    kept: list[Any] = []  # so that no other kernel gets the id of one
    with pytest.MonkeyPatch.context() as patch, driver_of(capability):
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(choice, "interpreted", lambda: True)  # lets CPU tensors through; all else is as for a GPU
        for variant in variants:
            take_step(variant)
    return found


def look(kernel: Any, instructions: bool) -> dict[str, Any]:
    """Registers, bytes of stack, local and shared memory, PTX instructions counted; and `turns`, which takes half a second."""
    kinds = re.findall(r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]*)", re.sub(r"//.*", "", kernel.asm["ptx"]), re.M)
    usage = _tool("cuobjdump", kernel, "-res-usage")
    numbers = {key.lower(): int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    loops = turns(kernel.asm["ptx"], _tool("nvdisasm", kernel, "-c")) if instructions else []
    ptx = Counter(k for k in kinds if k.split(".")[0] in ("ld", "st", "fma", "div", "sqrt", "bar"))
    return {**numbers, "ptx": ptx, "warps": kernel.metadata.num_warps, "loops": loops}


def turns(ptx: str, sass: str) -> list[float]:
    """Machine instructions that one turn of each loop takes which reads 16 bytes at a time, in the order of the code.

    The assembler unrolls some loops: of the machine's it then makes one of several turns, with so many times the loads.
    """
    found = vector_loops(sass)
    if sum(loop["LDG.128"] for loop in found) == _wide_loads(ptx):
        return [loop.total() for loop in found]
    loads = [number for loop in _ptx_loops(ptx) if (number := _wide_loads(loop))]
    assert len(loads) == len(found), (loads, found)
    return [loop.total() / (loop["LDG.128"] / number) for number, loop in zip(loads, found, strict=True)]


def _wide_loads(ptx: str) -> int:
    return len(re.findall(r"ld\.global\S*\.v4\.b32", ptx))


def _ptx_loops(ptx: str) -> list[str]:
    """The text of the loops that have no other in them."""
    lines = ptx.splitlines()
    labels = {line.partition(":")[0].strip(): i for i, line in enumerate(lines) if re.match(r"\s*\$L__BB\w+:", line)}
    branches = [(i, found[1]) for i, line in enumerate(lines) if (found := re.search(r"\bbra\S*\s+(\$L__BB\w+)", line))]
    backs = sorted((labels[label], i) for i, label in branches if labels[label] < i)
    return [
        "\n".join(lines[a:b]) for a, b in backs if not any((c, d) != (a, b) and c >= a and d <= b for c, d in backs)
    ]


def vector_loops(sass: str) -> list[Counter[str]]:
    """Machine instructions of the shortest way through each loop that reads 16 bytes at a time, in the order of the code.

    The shortest way is that of whole tiles with numbers of ordinary size. Loads of 16 bytes are counted apart.
    """
    code: list[tuple[str, str, str]] = []  # predicate, operation, what follows
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,5}\*/\s+(@!?U?P\w+ +)?([A-Z0-9_.]+)\s*(.*?);", line):
            code.append((found[1] or "", found[2], found[3]))

    def target(i: int) -> int | None:
        label = re.search(r"\.L_x_\d+", code[i][2]) if code[i][1].startswith("BRA") else None
        return labels.get(label[0]) if label else None

    backs = [(t, i) for i in range(len(code)) if (t := target(i)) is not None and t < i]
    loops = []
    for first, last in sorted(backs):
        if any((f, x) != (first, last) and f >= first and x <= last for f, x in backs):
            continue  # another loop lies within
        way = _shortest_way(code, target, first, last)
        operations = [code[i][1] for i in way]
        wide = ["LDG.128" if o.startswith("LDG") and ".128" in o else o.split(".")[0] for o in operations]
        if "LDG.128" in wide:
            loops.append(Counter(wide))
    return loops


def _shortest_way(code: list[tuple[str, str, str]], target: Any, first: int, last: int) -> list[int]:
    cost, after = {last: 1}, {}
    for i in range(last - 1, first - 1, -1):
        predicate, operation, _ = code[i]
        ways = [t] if (t := target(i)) is not None and i < t <= last else []
        if predicate or not operation.startswith(("BRA", "EXIT", "RET")):
            ways.append(i + 1)
        ways = [way for way in ways if way in cost]
        if ways:
            after[i] = min(ways, key=cost.__getitem__)
            cost[i] = cost[after[i]] + 1
    place: int | None = first
    way: list[int] = []
    while place is not None:
        way.append(place)
        place = after.get(place)
    return way


def _tool(name: str, kernel: Any, option: str) -> str:
    import triton

    tool = Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([str(tool), option, file.name], capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=["usual", "every", "stochastic"])
    parser.add_argument("capabilities", help="80,90")
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--instructions", action="store_true")
    given = parser.parse_args()
    variants = [
        v
        for v in {"usual": usual, "every": every, "stochastic": stochastic}[given.which]()
        if v.optimizer in given.optimizers
    ]
    targets = [int(c) for c in given.capabilities.split(",")]
    print(json.dumps([row for c in targets for row in compiled(variants, c, given.instructions)]))


if __name__ == "__main__":
    main()
