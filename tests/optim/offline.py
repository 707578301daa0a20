"""The 8-bit kernels compiled for GPUs without one: registers, spills, PTX and machine instructions.

Run as a program (in a process without Triton's interpreter) it prints one JSON object: of each kernel, what `look` found.
With names of kernels as arguments it prints the machine instructions that an element of whole tiles takes.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 90)
TILE = 8  # elements a thread
FLOAT32 = {"PARAM": "float32", "WEIGHT": "float32", "GRAD": "float32", "MASTER": False}
BFLOAT16 = {"PARAM": "bfloat16", "WEIGHT": "float32", "GRAD": "bfloat16", "MASTER": True}
COMMON = {"PLAIN": False, "ALIGNED": True, "TEST": True, "CLIP": False, "UPHILL": False}
LARS = {"ON_MOMENTUM": False, "BUFFER": True, "NESTEROV": False, "RATE_OUTSIDE": False}
# Name: (file, kernel, constants).
KERNELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adamw": ("adamw8bit", "_step", FLOAT32),
    "adamw-bfloat16": ("adamw8bit", "_step", {**BFLOAT16, "CLIP": True}),
    "adamw-small": ("adamw8bit", "_step", {**FLOAT32, "PLAIN": True}),
    "adamw-anywhere": ("adamw8bit", "_step", {**FLOAT32, "ALIGNED": False}),
    "sgd": ("sgd8bit", "_step", {**FLOAT32, "BUFFER": True, "NESTEROV": False}),
    "lamb-first": ("lamb8bit", "_pass", {**FLOAT32, "BIAS": True, "APPLY": False}),
    "lamb-second": ("lamb8bit", "_pass", {**FLOAT32, "BIAS": True, "APPLY": True}),
    "lars-first": ("lars8bit", "_pass", {**FLOAT32, **LARS, "APPLY": False}),
    "lars-second": ("lars8bit", "_pass", {**FLOAT32, **LARS, "APPLY": True}),
}
POINTERS = {
    "*i64": "params weights grads firsts first_scales seconds second_scales buffers buffer_scales chunks",
    "*fp32": "corrections kept_of decays scale share_of lr clip signed_values values",
    "*fp64": "partial",
    "*i32": "signed_table table",
    "*i8": "finite",
}


def compiled(name: str, capability: int, whole_tiles: bool = False) -> Any:
    """A kernel as a launch would compile it; or, to count in, without the code for tiles that are cut."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lightning_scale.optim.kernels.fused import coded_launch

    file, kernel_name, own = KERNELS[name]
    kernel = getattr(_module(file, whole_tiles), kernel_name)
    constants = {
        key: getattr(tl, value) if isinstance(value, str) else value
        for key, value in {**COMMON, **own, "ROWS": coded_launch.ROWS}.items()
    }
    types = {argument: kind for kind, arguments in POINTERS.items() for argument in arguments.split()}
    signature = {n: "constexpr" if n in constants else types.get(n, "fp32") for n in kernel.arg_names}
    # torch's memory begins at multiples of 16 bytes, which Triton finds out at a launch.
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n in types and n != "finite"}
    return triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": coded_launch.WARPS, "enable_fp_fusion": False},
    )


def _module(file: str, whole_tiles: bool) -> Any:
    module = importlib.import_module(f"lightning_scale.optim.kernels.fused.{file}")
    if not whole_tiles:
        return module
    source = Path(str(module.__file__)).read_text()
    test = "if (begin >= low) & (begin + ROWS * BLOCK <= high):"
    assert test in source
    path = Path(tempfile.mkdtemp()) / f"{file}.py"
    path.write_text(source.replace(test, "if True:"))
    spec = importlib.util.spec_from_file_location(file, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def look(result: Any) -> dict[str, Any]:
    """PTX instructions counted; registers, and bytes of stack and local memory."""
    kinds = re.findall(r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]*)", re.sub(r"//.*", "", result.asm["ptx"]), re.M)
    usage = _cuobjdump(result, "-res-usage")
    found = {key.lower(): int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    return {**found, "ptx": Counter(k for k in kinds if k.split(".")[0] in ("ld", "st", "fma", "div", "sqrt", "bar"))}


def instructions_of_the_loop(result: Any) -> Counter[str]:
    """Machine instructions of the shortest way through the longest loop: blocks of ordinary size take it."""
    code: list[tuple[str, str, str]] = []  # predicate, operation, what follows
    labels: dict[str, int] = {}
    for line in _sass(result).splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,5}\*/\s+(@!?U?P\w+ +)?([A-Z0-9_.]+)\s*(.*?);", line):
            code.append((found[1] or "", found[2], found[3]))

    def target(i: int) -> int | None:
        label = re.search(r"\.L_x_\d+", code[i][2]) if code[i][1].startswith("BRA") else None
        return labels.get(label[0]) if label else None

    back = [(i - t, t, i) for i in range(len(code)) if (t := target(i)) is not None and t < i]
    _, first, last = max(back)
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
    count: Counter[str] = Counter()
    place: int | None = first
    while place is not None:
        count[code[place][1].split(".")[0]] += 1
        place = after.get(place)
    return count


def _sass(result: Any) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        return subprocess.run([_tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True).stdout


def _cuobjdump(result: Any, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        tool = _tool("cuobjdump")
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def _tool(name: str) -> str:
    import triton

    return str(Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin" / name)


if __name__ == "__main__":
    if not sys.argv[1:]:
        print(json.dumps({f"{n} {c}": look(compiled(n, c)) for c in CAPABILITIES for n in KERNELS}))
    for name in sys.argv[1:]:
        for capability in CAPABILITIES:
            loop = instructions_of_the_loop(compiled(name, capability, whole_tiles=True))
            per_element = {k: round(n / TILE, 2) for k, n in loop.most_common()}
            print(f"{name} sm_{capability}: {loop.total() / TILE:.1f} instructions an element {per_element}")
