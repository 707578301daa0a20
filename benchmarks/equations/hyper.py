"""The numbers that every contestant is given."""

from __future__ import annotations

BETAS = (0.9, 0.99)
"""Not 0.999, so that the few steps of a check tell right moments from wrong ones."""
EPS = {"AdamW": 1e-8, "LAMB": 1e-6, "LARS": 1e-8, "SGD": 0.0}
MOMENTUM = 0.9
TRUST_COEFFICIENT = 0.001
WEIGHT_DECAY = 0.01
"""Of matrices; vectors have none."""

RATES = {"AdamW": 1e-2, "LAMB": 1e-2, "LARS": 10.0, "LARS momentum": 1e-2, "SGD": 1e-2}
"""Learning rates of the checks: a step is about a hundredth of a weight, so that float32 shows five digits of it."""
TIMED = 1e-4
"""Times those rates while steps are timed, where the same gradient comes again and again."""
