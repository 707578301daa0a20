"""Training on several ranks, each noting its own micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.distributed.ranks import ddp_options
from tests.plan.test_dry_run import CASES, Witness
from tests.toys import Net, trainer

NAMES = (
    "a ramp of all sizes, LEGW in epochs",
    "a plain loader, short last micro-batches, a ramp",
    "stages",
    "a scheduler that compounds, under LEGW, cut off by steps",
)


def fits(folder: Path) -> dict[str, list[list[Any]]]:
    found = {}
    for name in NAMES:
        data, callbacks, configure, options = CASES[name]
        witness = Witness()
        fit = trainer(folder, [*callbacks(), witness], **options, **ddp_options())
        fit.fit(Net(configure), datamodule=data())
        found[name] = [list(step) for step in witness.steps]
    return found
