"""The Triton kernels as GPUs get them, compiled without one: nothing spilled, nothing contracted, 16 bytes a thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

# Triton 3.2 puts 8 bytes of one LARS kernel for sm_80 on the stack.
STACK = 8 if triton.__version__.startswith("3.2.") else 0
FAMILIES = {"LAMB": {"_both", "_look", "_total", "_count"}, "LARS": {"_both", "_look", "_total"}}
# One number a layer or a tensor: nothing there to read in vectors.
SMALL = {"_count", "_total"}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_ptxas_says(family: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    output = subprocess.run(
        [sys.executable, "-m", "tests.optim.compile_for_gpu", family],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert output.returncode == 0, output.stderr
    results = json.loads(output.stdout)
    assert {r["kernel"].split(".")[1] for r in results} == FAMILIES[family]
    assert {r["capability"] for r in results} == {80, 90}
    for r in results:
        assert r["local"] == 0, r
        assert r["stack"] <= STACK, r
        assert "fma.rn.f32" not in r["ptx"], r
        if r["kernel"].split(".")[1] not in SMALL:
            assert any("ld.global" in kind and ".v4.b32" in kind for kind in r["ptx"]), r
            assert r["reg"] <= 96, r
