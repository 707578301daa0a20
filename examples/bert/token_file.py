"""Tokens in a file, read where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class TokenFile:
    """A read-only array of tokens that goes to worker processes as a path, not as a copy.

    Args:
        path: A file of 16-bit tokens.
    """

    dtype = np.dtype("<u2")
    """How a token is written: vocabularies have at most 65,536 of them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._tokens: npt.NDArray[np.uint16] = np.memmap(path, dtype=self.dtype, mode="r")

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, part: slice) -> npt.NDArray[np.uint16]:
        return self._tokens[part]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenFile, (self.path,)
