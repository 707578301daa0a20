"""Masks are functions of their key, and of the shares that Devlin et al. give."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.bert.masking import IGNORED, Masked, count_masked, mask

_MASK, _SPECIAL, _VOCABULARY = 4, 5, 50


def _mask(tokens: list[int], *key: int) -> Masked:
    return mask(np.array(tokens, dtype=np.int64), key, mask_id=_MASK, special_tokens=_SPECIAL, vocab_size=_VOCABULARY)


_samples = st.lists(st.integers(0, _VOCABULARY - 1), min_size=3, max_size=80)


@given(tokens=_samples, key=st.tuples(st.integers(0, 9), st.integers(0, 2**40)))
def test_what_is_hidden_and_what_is_not(tokens: list[int], key: tuple[int, ...]) -> None:
    masked = _mask(tokens, *key)
    counted = masked.targets != IGNORED
    hidden = masked.positions[counted]
    assert len(masked.positions) == len(masked.targets) == count_masked(len(tokens))
    assert len(set(hidden.tolist())) == len(hidden)
    ordinary = [i for i, token in enumerate(tokens) if token >= _SPECIAL]
    assert len(hidden) == min(count_masked(len(tokens)), len(ordinary))
    assert set(hidden.tolist()) <= set(ordinary)  # special tokens are never hidden
    assert [tokens[i] for i in hidden] == masked.targets[counted].tolist()
    others = np.setdiff1d(np.arange(len(tokens)), hidden)
    assert masked.input_ids[others].tolist() == [tokens[i] for i in others]
    shown = masked.input_ids[hidden]
    assert ((shown == _MASK) | (shown >= _SPECIAL)).all()


@given(length=st.integers(1, 4000))
def test_the_share_is_fifteen_percent_and_at_least_one(length: int) -> None:
    assert count_masked(length) >= 1
    assert abs(count_masked(length) - 0.15 * length) <= max(0.5, 1 - 0.15 * length)


def test_hidden_tokens_become_mask_random_or_stay_in_80_10_10() -> None:
    tokens = [7] * 100
    fates = {"mask": 0, "kept": 0, "random": 0}
    seen = set()
    for index in range(2000):
        masked = _mask(tokens, 0, index)
        for shown in masked.input_ids[masked.positions].tolist():
            fates["mask" if shown == _MASK else "kept" if shown == 7 else "random"] += 1
            seen.add(shown)
    total = sum(fates.values())
    assert total == 30_000
    # Standard deviations are 0.0023 and 0.0017; one random token in 45 is the token itself.
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.01)
    assert fates["random"] / total == pytest.approx(0.1 * 44 / 45, abs=0.008)
    assert fates["kept"] / total == pytest.approx(0.1 + 0.1 / 45, abs=0.008)
    assert seen == {_MASK, *range(_SPECIAL, _VOCABULARY)}


def test_every_place_is_as_likely_as_another() -> None:
    counts = np.zeros(20)
    for index in range(4000):
        counts[_mask([9] * 20, index).positions] += 1
    assert counts.sum() == 12_000
    assert np.abs(counts - 600).max() < 5 * np.sqrt(600)


def test_the_draw_is_a_function_of_the_key_alone() -> None:
    tokens = list(range(5, 45))
    first = _mask(tokens, 1, 2, 3)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    state = torch.get_rng_state()
    again = _mask(tokens, 1, 2, 3)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)):
        assert (_mask(tokens, *other).positions != first.positions).any()


def test_the_sample_itself_stays_as_it_is() -> None:
    tokens = np.arange(5, 45)
    mask(tokens, (0,), mask_id=_MASK, special_tokens=_SPECIAL, vocab_size=_VOCABULARY)
    assert (tokens == np.arange(5, 45)).all()
