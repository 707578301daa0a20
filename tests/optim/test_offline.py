"""The 8-bit kernels compile for sm_80 and sm_90 as they are meant to: nothing spilled, nothing contracted, wide loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from . import offline

if not version("triton").startswith("3.9."):
    pytest.skip("instructions are counted as Triton 3.9 chooses them", allow_module_level=True)

ROOT = Path(__file__).parents[2]

if not Path(offline._tool("cuobjdump")).exists():
    pytest.skip("this triton comes without NVIDIA's tools", allow_module_level=True)

# Multiply-adds that the kernels ask for. Of an element: 10 in Adam's direction where all is of ordinary size, 4 in a code.
# A tile of 8 elements a thread stands there twice, whole and cut.
DIRECTION, CODE = 8 * 10, 2 * 8 * 4
MULTIPLY_ADDS = {
    "adamw": DIRECTION + 2 * CODE,
    "adamw-bfloat16": DIRECTION + 2 * CODE,
    "adamw-small": DIRECTION,
    "adamw-anywhere": DIRECTION + 2 * CODE,
    "sgd": CODE,
    "lamb-first": DIRECTION,
    "lamb-second": DIRECTION + 2 * CODE,
    "lars-first": 0,
    "lars-second": CODE,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the compiler made of each kernel, from a process that has Triton's compiler instead of its interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    out = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "optim" / "offline.py")],
        env=environment,
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(out.stdout)
    return result


every_kernel = pytest.mark.parametrize(
    "name", [f"{name} {capability}" for capability in offline.CAPABILITIES for name in offline.KERNELS]
)


@every_kernel
def test_nothing_is_spilled_and_no_thread_waits_for_another_warp(found: dict[str, Any], name: str) -> None:
    kernel = found[name]
    assert kernel["stack"] == kernel["local"] == kernel["shared"] == 0
    assert not [k for k in kernel["ptx"] if k.startswith(("ld.local", "st.local", "bar"))]
    assert kernel["reg"] <= 96  # 20 warps a multiprocessor


@every_kernel
def test_no_product_is_contracted_with_a_sum(found: dict[str, Any], name: str) -> None:
    """What rounds once must not round never: only the multiply-adds that are written are there."""
    ptx = found[name]["ptx"]
    assert ptx.get("fma.rn.f32", 0) == MULTIPLY_ADDS[name.split()[0]]
    assert not [k for k in ptx if k.startswith(("div", "sqrt")) and ".rn." not in k]


@every_kernel
def test_whole_tiles_are_read_and_written_four_elements_at_a_time(found: dict[str, Any], name: str) -> None:
    """A tile of a warp is two loads of each tensor; a cut one is read element by element, as is what lies anywhere."""
    ptx, kind = found[name]["ptx"], name.split()[0]
    wide = {k: n for k, n in ptx.items() if ".global.v" in k}
    if kind == "adamw-anywhere":
        assert not wide
        return
    moments = {"adamw-small": 4}.get(kind, 0)  # float32 ones
    if kind == "adamw-bfloat16":
        expected = {"ld.global.v4.b32": 2, "ld.global.v2.b32": 2, "st.global.v4.b32": 2, "st.global.v2.b32": 2}
    else:
        expected = {"ld.global.v4.b32": 4 + moments, "st.global.v4.b32": 2 + moments}
    if kind.endswith("-first"):
        del expected["st.global.v4.b32"]
    assert wide == expected
    # Codes of a whole tile are four to a load, so that single bytes are those of the cut one alone (and the flag).
    coded = {"adamw-small": 0, "lars-first": 0, "sgd": 1, "lars-second": 1}.get(kind, 2)
    assert ptx["ld.global.b8"] == 8 * coded + 1
    assert ptx.get("st.global.b8", 0) == (0 if kind.endswith("-first") else 8 * coded)
