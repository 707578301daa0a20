"""The 8-bit kernels compiled for GPUs without one: registers, spills, PTX and machine instructions.

Run as a program (in a process without Triton's interpreter) it prints one JSON object: of each kernel, what `look` found.
With the argument ``count`` it prints a table of machine instructions an element instead.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 90)
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


def compiled(name: str, capability: int) -> Any:
    """A kernel as a launch would compile it."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lightning_scale.optim.kernels.fused import adamw8bit, coded_launch, lamb8bit, lars8bit, sgd8bit

    modules = {"adamw8bit": adamw8bit, "sgd8bit": sgd8bit, "lamb8bit": lamb8bit, "lars8bit": lars8bit}
    file, kernel_name, own = KERNELS[name]
    kernel = getattr(modules[file], kernel_name)
    constants = {
        key: getattr(tl, value) if isinstance(value, str) else value
        for key, value in {**COMMON, **own, "ROWS": coded_launch.ROWS}.items()
    }
    types = {argument: kind for kind, arguments in POINTERS.items() for argument in arguments.split()}
    signature = {n: "constexpr" if n in constants else types.get(n, "fp32") for n in kernel.arg_names}
    # torch's memory begins at multiples of 16 bytes, which Triton finds out at a launch.
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n in types and n != "finite"
    }
    return triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": coded_launch.WARPS, "enable_fp_fusion": False},
    )


def look(result: Any) -> dict[str, Any]:
    """PTX instructions counted; registers, and bytes of stack and local memory."""
    kinds = re.findall(r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]*)", re.sub(r"//.*", "", result.asm["ptx"]), re.M)
    usage = _cuobjdump(result, "-res-usage")
    found = {key.lower(): int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    return {**found, "ptx": Counter(k for k in kinds if k.split(".")[0] in ("ld", "st", "fma", "div", "sqrt", "bar"))}


def loop_instructions(result: Any) -> list[tuple[int, Counter[str]]]:
    """Of each basic block with at least 64 machine instructions its length, and the instructions."""
    lines = re.findall(
        r"^\s+(?:(\.L_x_\d+):)?\s*(?:/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ +)?([A-Z0-9_.]+)(.*))?$", _sass(result), re.M
    )
    blocks: list[Counter[str]] = [Counter()]
    for label, instruction, rest in lines:
        if label:
            blocks.append(Counter())
        if instruction:
            blocks[-1][instruction.split(".")[0]] += 1
    return [(sum(b.values()), b) for b in blocks if sum(b.values()) >= 64]


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
    names = sys.argv[1:] or list(KERNELS)
    print(json.dumps({f"{n} {c}": look(compiled(n, c)) for c in CAPABILITIES for n in names}))
