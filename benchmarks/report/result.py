"""What a run gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.measure.check import Verdict
from benchmarks.measure.spread import Spread

MEASURED, WRONG, MISSING = "measured", "wrong", "missing"


@dataclass(frozen=True)
class Row:
    """One contestant's. What was not measured is None.

    Args:
        name: The contestant's.
        package: Whose it is.
        traffic: Its line in the table of bytes.
        fused: This library's option.
        tests_finite: Whether its step tests the gradients for NaN and Inf.
        status: "measured"; "wrong" where its check failed (it is measured all the same); "missing", with the reason.
        reason: Why it is missing.
        note: What the reader should know.
        check: How far it is from what it claims.
        instead: How far from what it is thought to compute, where that is another thing.
        writes_gradients: Whether its step changes the gradients.
        seconds: Of a step.
        ratio: Of a step's time to torch's fused float32 AdamW's of the same round.
        host_seconds: Until the call of a step returned; on CUDA.
        bytes_per_element: That its algorithm moves.
        least_bytes_per_element: That it cannot do without.
        bytes_per_second: The former over the median time.
        share_of_copy: The same over a copy's.
        state_bytes_per_element: That it keeps.
        extra_bytes_per_element: That a step holds beside, at most; on CUDA.
        kernels: Launched by a step; on CUDA.
        triton_launches: Of them, those that this library counts itself.
        warm_up_steps: Until they no longer got quicker.
    """

    name: str
    package: str
    traffic: str
    fused: bool | None
    tests_finite: bool
    status: str
    reason: str = ""
    note: str = ""
    check: Verdict | None = None
    instead: Verdict | None = None
    writes_gradients: bool | None = None
    seconds: Spread | None = None
    ratio: Spread | None = None
    host_seconds: Spread | None = None
    bytes_per_element: float | None = None
    least_bytes_per_element: float | None = None
    bytes_per_second: float | None = None
    share_of_copy: float | None = None
    state_bytes_per_element: float | None = None
    extra_bytes_per_element: float | None = None
    kernels: int | None = None
    triton_launches: int | None = None
    warm_up_steps: int | None = None


@dataclass(frozen=True)
class TargetRow:
    """A ratio to be reached, beside the one that was."""

    device: str
    parameters: str
    optimizer: str
    must: float
    goal: float
    note: str = ""
    """What the numbers depend on beside."""
    measured: float | None = None
    by: str = ""
    """Whose it is: the quickest right one of that optimizer that tests the gradients."""
    disturbed: bool = False
    """Whether others used so much of the cores meanwhile that the ratio says nothing."""


@dataclass(frozen=True)
class Run:
    """What was measured on one set of parameters.

    Args:
        settings: What was asked for.
        elements: Of the set.
        tensors: Of the set.
        copy_bytes_per_second: Of the copy that bandwidths are compared with.
        others_share_of_cores: What others used of the cores' time meanwhile; None where it is not known.
        rows: Everyone's.
    """

    settings: dict[str, Any]
    elements: int
    tensors: int
    copy_bytes_per_second: Spread
    others_share_of_cores: float | None
    rows: list[Row]


@dataclass(frozen=True)
class Report:
    """A whole command's: one set of parameters after the other, on the same machine."""

    date: str
    environment: dict[str, Any]
    baseline: str
    runs: list[Run]
    targets: list[TargetRow] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
