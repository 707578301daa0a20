"""The rules that contestants claim, by the names that tables show."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.equations.hyper import RATES
from benchmarks.equations.steps import Step, adamw, lamb, lars, lars_momentum, sgd

FLOAT32_BOUND = 1e-4
"""What float32 may be off, as a share of the way that the weights went: five roundings to 2^-24 of a weight, of steps that
are a hundredth of it, are 1e-5."""
EIGHT_BIT_BOUND = 0.03
"""What 8-bit moments may: codes are some hundredths of a moment apart, and 1e-2 is what rounding to them was seen to do."""
EIGHT_BIT_FROM = 4096
"""Elements; smaller parameters keep float32 moments in every library here."""


@dataclass(frozen=True)
class Rule:
    """An equation and how well it must be met.

    Args:
        name: What tables call it.
        step: The equation.
        rate: The learning rate of a check.
        bound: How far off a contestant may be, as a share of the way that the weights went.
        from_elements: Parameters of fewer are not held to it.
    """

    name: str
    step: Step
    rate: float
    bound: float = FLOAT32_BOUND
    from_elements: int = 0

    def in_8_bits(self) -> Rule:
        """The same from moments that are rounded to 8 bits, which the equation here is not."""
        return replace(self, bound=EIGHT_BIT_BOUND)

    def where_in_8_bits(self, name: str) -> Rule:
        """The same under another name, for the parameters alone that are large enough for 8 bits."""
        return replace(self.in_8_bits(), name=name, from_elements=EIGHT_BIT_FROM)


ADAMW = Rule("AdamW", adamw(), RATES["AdamW"])
SGD = Rule("SGD", sgd(), RATES["SGD"])
LAMB = Rule("LAMB", lamb(), RATES["LAMB"])
LAMB_OF_ALL = Rule("LAMB", lamb(vectors_adapt=True), RATES["LAMB"])
"""With ratios for vectors too, as the paper has it."""
LARS = Rule("LARS", lars(), RATES["LARS"])
LARS_MOMENTUM = Rule("LARS on the momentum", lars_momentum(), RATES["LARS momentum"])
