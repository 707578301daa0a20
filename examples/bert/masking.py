"""Which tokens the model must guess, drawn from a key and from nothing else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""The target of a place that does not count in the loss (torch's default ``ignore_index``)."""


class Masked(NamedTuple):
    """One sample with some of its tokens hidden; L tokens, n places to guess."""

    input_ids: npt.NDArray[np.int64]
    """[L]: what the model reads."""
    positions: npt.NDArray[np.int64]
    """[n]: the places to guess, ascending."""
    targets: npt.NDArray[np.int64]
    """[n]: the tokens that belong there; `IGNORED` where a sample had fewer than n tokens to hide."""


def count_masked(sequence_length: int, share: float = 0.15) -> int:
    """Tokens to hide in a sample, at least 1.

    The same for every sample of a length, so that the mean over micro-batches is the mean over all hidden tokens.
    """
    return max(1, round(sequence_length * share))


def mask(
    tokens: npt.NDArray[np.int64],
    key: tuple[int, ...],
    *,
    mask_id: int,
    special_tokens: int,
    vocab_size: int,
    share: float = 0.15,
) -> Masked:
    """Hide 15 % of a sample's tokens (Devlin et al. 2018, arXiv 1810.04805, section 3.1).

    Of the hidden tokens 80 % become [MASK], 10 % a random token and 10 % stay as they are.

    Args:
        tokens: [L], one sample.
        key: What the draw is a function of (non-negative integers): seed, stage, pass, sample.
        mask_id: The id of [MASK].
        special_tokens: Ids below this are special: never hidden and never put in a token's place.
        vocab_size: Number of ids.
        share: Share of the sample's tokens to hide.
    """
    count = count_masked(len(tokens), share)
    random = np.random.default_rng(key)
    ordinary = np.flatnonzero(tokens >= special_tokens)
    hidden = np.sort(random.choice(ordinary, size=min(count, len(ordinary)), replace=False))
    fate = random.random(len(hidden))
    replacement = random.integers(special_tokens, vocab_size, size=len(hidden))
    input_ids = tokens.copy()
    input_ids[hidden] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, replacement, tokens[hidden]))
    positions = np.zeros(count, dtype=np.int64)
    targets = np.full(count, IGNORED, dtype=np.int64)
    positions[: len(hidden)] = hidden
    targets[: len(hidden)] = tokens[hidden]
    return Masked(input_ids, positions, targets)
