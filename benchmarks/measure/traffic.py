"""How many bytes an algorithm must move for each element of a parameter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """One run over all elements: what it reads and writes, of w(eights), g(radients), and the moments m and v."""

    reads: str
    writes: str


@dataclass(frozen=True)
class Sizes:
    """Bytes of one element.

    Args:
        weight_read: Of the weights that the step is computed on.
        weight_written: Of those, and of the lower-precision parameters beside them.
        gradient: Of the gradients.
        moment: Of the moments.
    """

    weight_read: float
    weight_written: float
    gradient: float
    moment: float

    def of(self, p: Pass) -> float:
        """Bytes of one pass."""
        read = {"w": self.weight_read, "g": self.gradient, "m": self.moment, "v": self.moment}
        return sum(read[letter] for letter in p.reads) + sum(
            (read | {"w": self.weight_written})[letter] for letter in p.writes
        )


FLOAT32 = Sizes(weight_read=4, weight_written=4, gradient=4, moment=4)
BFLOAT16_MASTER = Sizes(weight_read=4, weight_written=6, gradient=2, moment=4)
SIZES = {"float32": FLOAT32, "bf16-master": BFLOAT16_MASTER}

# A ratio needs whole norms before the first weight moves, so what is layer-wise takes two passes unless a layer's elements
# stay in a cache between them; the second pass computes the update again, where writing and reading it would cost more.
# Moments in 8 bits are written by the second pass, from the moments before they are rounded.
PASSES: dict[str, tuple[Pass, ...]] = {
    "AdamW": (Pass("wgmv", "wmv"),),
    "SGD": (Pass("wgm", "wm"),),
    "LAMB": (Pass("wgmv", "mv"), Pass("wmv", "w")),
    "LARS": (Pass("wg", ""), Pass("wgm", "wm")),
    "LARS on the momentum": (Pass("wgm", "m"), Pass("wm", "w")),
    "AdamW8bit": (Pass("wgmv", "wmv"),),
    "SGD8bit": (Pass("wgm", "wm"),),
    "LAMB8bit": (Pass("wgmv", ""), Pass("wgmv", "wmv")),
    "LARS8bit": (Pass("wg", ""), Pass("wgm", "wm")),
}


def bytes_per_element(algorithm: str, dtype: str = "float32", *, tests_finite: bool = False) -> float:
    """What its passes move, and a gradient more where the test for NaN and Inf is a look of its own.

    The scales of 8-bit moments (4 bytes for 256 elements) are left out.
    """
    sizes = _sizes(algorithm, dtype)
    return sum(sizes.of(p) for p in PASSES[algorithm]) + (sizes.gradient if tests_finite else 0)


def least_bytes_per_element(algorithm: str, dtype: str = "float32") -> float:
    """Every input read once and every output written once: what no version can do without."""
    passes = PASSES[algorithm]
    once = Pass(_once(p.reads for p in passes), _once(p.writes for p in passes))
    return _sizes(algorithm, dtype).of(once)


def _once(letters: Iterable[str]) -> str:
    return "".join(set("".join(letters)))


def _sizes(algorithm: str, dtype: str) -> Sizes:
    sizes = SIZES[dtype]
    moment = 1.0 if "8bit" in algorithm else sizes.moment
    return Sizes(sizes.weight_read, sizes.weight_written, sizes.gradient, moment)
