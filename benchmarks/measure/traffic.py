"""How many bytes an algorithm must move for each element of a parameter: ``python -m benchmarks.measure.traffic`` prints a table.

What this library's optimizers read and write is in its registry; here stand those of torch that it has none of.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks.rows import ROWS
from lightning_scale.optim.registry import Pass


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

_OF_TORCH: dict[str, tuple[Pass, ...]] = {"AdamW": (Pass("wgmv", "wmv"),), "SGD": (Pass("wgm", "wm"),)}
PASSES = _OF_TORCH | {name: entry.passes_of(form) for name, (entry, form) in ROWS.items()}
"""By the name of a row. Where a kernel finds in a cache what its first pass left there, it moves less."""


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
    in_8_bits = algorithm in ROWS and ROWS[algorithm][0].eight_bit
    return replace(sizes, moment=1.0) if in_8_bits else sizes


def table() -> str:
    """As Markdown: the passes, and the bytes of both precisions with the least that there can be."""
    lines = ["| | passes | float32 | least | bf16-master | least |", "|---|---|---|---|---|---|"]
    for name, passes in PASSES.items():
        shown = "; ".join(f"{p.reads} → {p.writes}" if p.writes else p.reads for p in passes)
        numbers = [f(name, dtype) for dtype in SIZES for f in (bytes_per_element, least_bytes_per_element)]
        lines.append(f"| {name} | {shown} | " + " | ".join(f"{n:g}" for n in numbers) + " |")
    tests = [f"+{sizes.gradient:g}" for sizes in SIZES.values()]
    return "\n".join([*lines, "| the test for NaN and Inf | g | " + " | | ".join(tests) + " | |"])


if __name__ == "__main__":
    print(table())
