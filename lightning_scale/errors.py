"""The errors that a user of this package sees by name, and a sentence that two places say."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """Something the user configured cannot run: one sentence that says what was wrong and what to write instead.

    Raised before training starts. The ``lightning-scale`` command prints the sentence alone, without a traceback.
    """


class UnsafeCheckpointError(RuntimeError):
    """A checkpoint holds more than tensors and plain values, so that to load it could run code; nothing was loaded."""


class NonfiniteGradientsError(RuntimeError):
    """Too many steps in a row had a NaN or Inf gradient; raised on all ranks at the same step."""


def two_callbacks(kind: str) -> str:
    """Of a `ConfigurationError`: two callbacks of a type whose state has one name."""
    return f"there are two {kind} callbacks: keep one (the files may both name it)."
