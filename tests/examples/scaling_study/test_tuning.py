"""Which rates are tried, and which one is taken."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from examples.scaling_study.rows import Row
from examples.scaling_study.tuning import choose, finalists, next_rates, rate


def tried(index: int, loss: float, seed: int = 1000, diverged: bool = False) -> Row:
    return Row("lstm", "sgd", "tuning", 1, index, seed, 8, 0.1, 10, loss, loss, 0.5, 0.0, 0.5, diverged, 1.0)


def search(loss: Callable[[int], float], half_width: int = 2, most: int = 6) -> list[Row]:
    rows: list[Row] = []
    while indices := next_rates(rows, half_width, most):
        rows += [tried(index, loss(index), diverged=math.isnan(loss(index))) for index in indices]
    return rows


def test_each_rate_is_twice_the_one_before() -> None:
    assert [rate(0.1, index) for index in (-1, 0, 2)] == [0.05, 0.1, 0.4]


@pytest.mark.parametrize("best", [-6, -3, 0, 1, 5])
def test_the_search_goes_on_until_the_best_has_neighbours(best: int) -> None:
    rows = search(lambda index: abs(index - best))
    indices = sorted(row.rate_index for row in rows)
    low, high = min(-2, best - 1 if best > -6 else best), max(2, best + 1)
    assert indices == list(range(low, high + 1))  # each once
    choice = choose(rows)
    assert choice.rate_index == best
    assert choice.at_edge == (best == -6)


def test_the_search_ends_at_the_farthest_place_and_says_so() -> None:
    choice = choose(search(lambda index: -index, most=4))
    assert choice.rate_index == 4 and choice.at_edge


def test_a_rate_that_diverges_for_one_seed_is_not_taken() -> None:
    rows = [tried(0, 1.0), tried(0, 1.0, seed=1001), tried(1, 0.1), tried(1, math.nan, seed=1001, diverged=True)]
    assert choose([*rows, tried(-1, 2.0), tried(-1, 2.0, seed=1001)]).rate_index == 0


def test_other_seeds_decide_between_the_best_of_the_search() -> None:
    searched = [tried(-1, 3.0), tried(0, 1.0), tried(1, 0.9), tried(2, 2.0)]
    assert finalists(searched, 2) == [1, 0]
    others = [tried(0, 1.0, seed=1001), tried(1, 1.2, seed=1001)]
    assert choose([*searched, *others]).rate_index == 0  # 1.0 on average, against 1.05
    assert choose([tried(3, 0.1), *searched, *others]).rate_index == 0  # what only one seed ran does not count


def test_the_search_turns_to_smaller_rates_where_all_diverge() -> None:
    rows = search(lambda index: math.nan if index > -4 else 1.0 - index / 10)
    assert choose(rows).rate_index == -4


def test_it_is_the_loss_of_the_tuning_samples_that_counts() -> None:
    better_test = Row("lstm", "sgd", "tuning", 1, 0, 1000, 8, 0.1, 10, 0.0, 0.9, 0.9, 0.0, 1.0, False, 1.0)
    worse_test = Row("lstm", "sgd", "tuning", 1, 1, 1000, 8, 0.2, 10, 9.0, 0.5, 0.5, 9.0, 0.1, False, 1.0)
    assert choose([better_test, worse_test, tried(-1, 3.0)]).rate_index == 1
