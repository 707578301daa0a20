"""Formats numbers and tables for the terminal, and reads amounts of memory."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")


def table(lines: Sequence[Sequence[str]], left_from: int) -> str:
    """Return lines of cells in columns; those from number ``left_from`` on are aligned at the left, the others at the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i >= left_from else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def count(value: int | None) -> str:
    """Return a whole number with commas, or "-" for None."""
    return "-" if value is None else f"{value:,}"


def size(value: float) -> str:
    """Return bytes in units of 1000 with three digits, such as "24.0 GB"."""
    number, unit = float(value), 0
    while abs(number) >= 999.5 and unit < len(_BYTES) - 1:
        number, unit = number / 1000, unit + 1
    digits = max(0, 2 - len(str(int(abs(number)))) + 1) if unit else 0
    return f"{number:.{digits}f} {_BYTES[unit]}"


def parse_size(text: str, name: str) -> int:
    """Read an amount such as "80GB" (1000³ bytes) or "80GiB" (1024³), in bytes.

    Raises:
        ValueError: for anything else.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kMGTP]?)(i?)B\s*", text)
    if match is None or float(match[1]) <= 0 or (match[3] and not match[2]):
        raise ValueError(f'{name} is {text!r}: write an amount such as "80GB" or "141GiB".')
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** ("_kMGTP".index(match[2]) if match[2] else 0))
