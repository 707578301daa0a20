"""A plan as text, or as JSON."""

from __future__ import annotations

import json
from typing import Any

from lightning_scale.plan import schedule, warnings
from lightning_scale.plan.rehearsal import Rehearsed


def report(found: Rehearsed, *, as_json: bool, strategy: Any, precision: Any) -> str:
    """What a rehearsal has found.

    Args:
        found: That.
        as_json: Write JSON; else text.
        strategy: As configured.
        precision: As configured.
    """
    said = warnings.of_schedule(found.schedule)
    if as_json:
        return json.dumps({"schedule": schedule.as_json(found.schedule), "warnings": said}, indent=1)
    parts = ["SCHEDULE", schedule.schedule_table(found.schedule), schedule.totals_line(found.schedule)]
    if said:
        parts += ["\nWARNINGS", *(f"- {sentence}" for sentence in said)]
    return "\n".join(parts)
