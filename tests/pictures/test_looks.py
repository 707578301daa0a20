"""Rows of named numbers: names that come late, bounded memory, checkpoints."""

from __future__ import annotations

import torch

from lightning_scale.pictures import Looks


def test_names_that_come_late_or_stay_away_have_gaps() -> None:
    looks = Looks()
    looks.add(1, {"a": 1.0})
    looks.add(2, {"b": 4.0, "a": 2.0})
    looks.add(3, {"b": 5.0})
    again = Looks()
    again.load_state_dict(looks.state_dict())
    again.add(4, {"c": 6.0})
    nan = float("nan")
    expected = torch.tensor([[1.0, 2.0, nan, nan], [nan, 4.0, 5.0, nan], [nan, nan, nan, 6.0]])
    assert torch.equal(again.table().nan_to_num(-1), expected.nan_to_num(-1))
    assert again.steps == [1, 2, 3, 4]
    assert again.row("missing") == []


def test_memory_is_bounded_and_the_ends_stay() -> None:
    looks = Looks(most=10)
    for step in range(1, 1001):
        looks.add(step, {"a": float(step)})
        assert len(looks) <= 10
        assert (looks.steps[0], looks.steps[-1]) == (1, step)
        assert looks.row("a") == [float(s) for s in looks.steps]
    assert len(looks) >= 5
