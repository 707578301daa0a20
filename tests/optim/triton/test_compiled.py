"""The kernels as GPUs get them, compiled without one by the way that a launch takes: nothing spilled, nothing contracted, wide
loads. And for every version of Triton what the committed table says."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from tests.optim.triton import table
from tests.optim.triton.variants import OPTIMIZERS

CURRENT = triton.__version__.startswith("3.9.")
# Triton 3.2 puts 8 bytes of one LARS kernel for sm_80 on the stack.
STACK = 8 if triton.__version__.startswith("3.2.") else 0
SHARED_BY_ALL = {
    "sums._look",
    "sums._total",
    "lamb._count",
    "sums._norms_of_layers",
    "sums._sum_chunks",
}
EIGHT_BIT = {"lamb._pass", "lars._pass", "adamw._step", "sgd._step"}
OWN = {
    *(f"{name}.{kernel}" for name in ("lamb", "lars") for kernel in ("_both", "_measure", "_apply")),
    *EIGHT_BIT,
}


def is_8bit(row: dict[str, Any]) -> bool:
    return row["kernel"] in EIGHT_BIT


def coded_moments(row: dict[str, Any]) -> int:
    """How many moments an 8-bit optimizer's kernel reads."""
    if row["kernel"].startswith(("adamw", "lamb")):
        return 2
    constants = row["constants"]
    reads = constants["BUFFER"] and (row["kernel"].startswith("sgd") or constants["APPLY"] or constants["ON_MOMENTUM"])
    return int(bool(reads))


def writes(row: dict[str, Any]) -> bool:
    return bool(row["constants"].get("APPLY", True))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return table.compile_all(None, "usual", "90")


@pytest.mark.timeout(600)
def test_every_kernel_is_compiled_in_every_usual_form(rows: list[dict[str, Any]]) -> None:
    assert {row["kernel"] for row in rows} == SHARED_BY_ALL | OWN
    for row in rows:
        constants = row["constants"]
        if row["kernel"] in OWN:
            forms = {
                k: {r["constants"].get(k) for r in rows if r["kernel"] == row["kernel"]}
                for k in ("MASTER", "TEST", "CLIP")
            }
            assert all(seen == {False, True} or k not in constants for k, seen in forms.items()), (row["kernel"], forms)


def test_nothing_is_spilled(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["local"] == 0 and row["stack"] <= STACK, row
        assert not [k for k in row["ptx"] if k.startswith(("ld.local", "st.local"))], row
        if CURRENT:
            assert row["reg"] <= 96, row  # 20 warps a multiprocessor
    if CURRENT:
        for row in filter(is_8bit, rows):  # no thread waits for another warp
            assert row["shared"] == 0 and "bar.sync" not in row["ptx"], row


def test_no_product_is_contracted_with_a_sum(rows: list[dict[str, Any]]) -> None:
    """What rounds once must not round never: only the multiply-adds that are written are there."""
    # Of an element: 10 in Adam's direction where all is of ordinary size, 4 in a code. A tile of 8 elements a thread stands
    # there twice, whole and cut; the direction once.
    direction, code = 8 * 10, 2 * 8 * 4
    for row in rows:
        expected = 0
        if is_8bit(row) and not row["constants"]["PLAIN"] and writes(row):
            expected += code * coded_moments(row)
        if is_8bit(row) and coded_moments(row) == 2:
            expected += direction
        if CURRENT or not expected:
            assert row["ptx"].get("fma.rn.f32", 0) == expected, row
        assert not [k for k in row["ptx"] if k.startswith(("div", "sqrt")) and ".rn." not in k], row


def test_whole_tiles_are_read_and_written_in_vectors(rows: list[dict[str, Any]]) -> None:
    """Single numbers of a layer or a tensor need none."""
    for row in rows:
        if row["kernel"] in OWN | {"sums._look"}:
            assert any("ld.global" in kind and ".v4.b32" in kind for kind in row["ptx"]), row


@pytest.mark.skipif(not CURRENT, reason="counted as Triton 3.9 chooses loads and stores")
def test_tiles_of_8_bit_kernels_take_two_loads_of_each_tensor(rows: list[dict[str, Any]]) -> None:
    """A cut one is read element by element."""
    for row in filter(is_8bit, rows):
        constants, ptx = row["constants"], row["ptx"]
        plain = 2 * coded_moments(row) * constants["PLAIN"]
        coded = coded_moments(row) * (not constants["PLAIN"])
        loads = {"v4": 2 + plain, "v2": 0}
        loads["v2" if constants["GRAD"] == "bf16" else "v4"] += 2
        loads["v2"] += 2 * constants["MASTER"]  # the parameter beside its master
        stores = {"v4": 2 + plain, "v2": 2 * constants["MASTER"]} if writes(row) else {"v4": 0, "v2": 0}
        assert {w: ptx.get(f"ld.global.{w}.b32", 0) for w in loads} == loads, row
        assert {w: ptx.get(f"st.global.{w}.b32", 0) for w in stores} == stores, row
        # Codes of a whole tile are four to a load, so that single bytes are those of the cut one alone (and the flag).
        assert ptx.get("ld.global.b8", 0) == 8 * coded + constants["TEST"], row
        assert ptx.get("st.global.b8", 0) == 8 * coded * writes(row), row


@pytest.mark.timeout(600)
def test_kernels_that_round_stochastically() -> None:
    rows = [row for row in table.compile_all(None, "stochastic", "90") if row["constants"].get("STOCHASTIC")]
    assert {row["kernel"] for row in rows} == {kernel for kernel in OWN if not kernel.endswith("_measure")}
    for row in rows:
        assert row["local"] == row["stack"] == 0, row


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_committed_table() -> None:
    """`make kernels` writes it anew: look at what has become worse before you commit that."""
    assert {*table.OTHER_VERSIONS} <= {*table.folders()}, "make triton-versions"
    assert table.TABLE.read_text() == table.table(table.made())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("capability", table.CAPABILITIES)
@pytest.mark.parametrize("version", [*table.OTHER_VERSIONS, triton.__version__])
def test_every_form_of_every_kernel_compiles(version: str, capability: int, optimizer: str) -> None:
    rows = table.compile_all(table.folders()[version], "every", str(capability), "--optimizers", optimizer)
    assert len(rows) > 8
    for row in rows:
        # A few unusual forms have 8 or 16 bytes on the stack.
        assert row["local"] == 0 and row["stack"] <= 16, row
