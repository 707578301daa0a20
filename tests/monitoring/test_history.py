"""Rows of named numbers: names that come late, bounded memory, checkpoints."""

from __future__ import annotations

import torch

from lightning_scale.monitoring import History


def test_names_that_come_late_or_stay_away_have_gaps() -> None:
    history = History()
    history.add(1, {"a": 1.0})
    history.add(2, {"b": 4.0, "a": 2.0})
    history.add(3, {"b": 5.0})
    again = History()
    again.load_state_dict(history.state_dict())
    again.add(4, {"c": 6.0})
    nan = float("nan")
    expected = torch.tensor([[1.0, 2.0, nan, nan], [nan, 4.0, 5.0, nan], [nan, nan, nan, 6.0]])
    assert torch.equal(again.table().nan_to_num(-1), expected.nan_to_num(-1))
    assert again.steps == [1, 2, 3, 4]
    assert again.row("missing") == []


def test_memory_is_bounded_and_the_ends_stay() -> None:
    history = History(most=10)
    for step in range(1, 1001):
        history.add(step, {"a": float(step)})
        assert len(history) <= 10
        assert (history.steps[0], history.steps[-1]) == (1, step)
        assert history.row("a") == [float(s) for s in history.steps]
    assert len(history) >= 5
