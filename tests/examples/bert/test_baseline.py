"""The frequency guess, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from examples.bert.baseline import frequency_guess_loss
from examples.bert.masking import IGNORED


def test_by_hand() -> None:
    # Ids 0 and 1 are special. Ids 2, 3, 4 were seen 6, 1 and 0 times: shares 7/10, 2/10, 1/10.
    counts = np.array([50, 50, 6, 1, 0])
    targets = np.array([[2, 4, IGNORED], [2, 3, IGNORED]])
    expected = -(2 * math.log(0.7) + math.log(0.2) + math.log(0.1)) / 4
    assert frequency_guess_loss(counts, targets, first=2) == pytest.approx(expected, rel=1e-12)


def test_equal_frequencies_cost_the_logarithm_of_the_vocabulary() -> None:
    counts = np.array([0, 9, 9, 9, 9])
    assert frequency_guess_loss(counts, np.array([1, 2, 2, 4]), first=1) == pytest.approx(math.log(4), rel=1e-12)


def test_no_target_is_refused() -> None:
    with pytest.raises(ValueError, match="no target counts"):
        frequency_guess_loss(np.array([1, 1]), np.array([IGNORED]), first=0)
