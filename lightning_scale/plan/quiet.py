"""Silence around Lightning, but for what this package warns of."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

PACKAGE = str(Path(__file__).parents[1])
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


class Quiet:
    """Within, nothing is printed; what this package warns of is kept, everything else that is said is not."""

    def __enter__(self) -> list[str]:
        self._said: list[str] = []
        self._caught = warnings.catch_warnings(record=True)
        self._records = self._caught.__enter__()
        warnings.simplefilter("always")
        self._levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
        for logger, _ in self._levels:
            logger.setLevel(logging.ERROR)
        return self._said

    def __exit__(self, *error: Any) -> None:
        self._said += [str(record.message) for record in self._records or () if record.filename.startswith(PACKAGE)]
        self._caught.__exit__(*error)
        for logger, level in self._levels:
            logger.setLevel(level)
