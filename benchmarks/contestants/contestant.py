"""One optimizer in one form, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.equations.rules import Rule

Make = Callable[[Sequence[nn.Parameter], float], Any]
"""(parameters, learning rate) to an optimizer."""


class NotAvailable(Exception):
    """Why a contestant cannot take part here: not installed, or not on this device."""


@dataclass(frozen=True)
class Contestant:
    """One row of a table.

    Args:
        name: Of the row.
        package: Whose it is; also what is imported and whose version is noted.
        traffic: Which line of the table of bytes it is held to (`measure.traffic`).
        claims: What it says that it computes.
        make: Makes it; imports its package. Raises NotAvailable with a sentence where that cannot be.
        instead: What it computes where that is another thing, as far as it is known; checked too.
        fused: The library's own option, for its own optimizers: None for Triton's kernels on CUDA devices and numba's on CPUs,
            False for the reference in plain torch, True for Triton's kernels or none.
        tests_finite: Whether a step looks at every gradient for NaN and Inf.
        master: Whether it can keep float32 copies of bfloat16 parameters.
        note: A sentence for the reader.
    """

    name: str
    package: str
    traffic: str
    claims: Rule
    make: Make
    instead: Rule | None = None
    fused: bool | None = None
    tests_finite: bool = False
    master: bool = False
    note: str = ""
