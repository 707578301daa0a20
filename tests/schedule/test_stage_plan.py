from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import Stage, StagePlan, StagePosition

from .sentences import refuses


def plan(*steps: int, lr: float | None = 1.0) -> StagePlan:
    return StagePlan([Stage(128 * (i + 1), n, 8, lr=lr, decay="constant") for i, n in enumerate(steps)])


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_at_every_step(lengths: list[int]) -> None:
    made = plan(*lengths)
    expected = [(i, step) for i, length in enumerate(lengths) for step in range(length)]
    assert made.total_steps == len(expected) == sum(lengths)
    assert made.boundaries == tuple(sum(lengths[: i + 1]) for i in range(len(lengths)))
    for step, (index, inside) in enumerate(expected):
        assert made.at(step) == StagePosition(index, made.stages[index], inside, index == len(lengths) - 1)
    end = made.at(made.total_steps)
    assert end == StagePosition(len(lengths) - 1, made.stages[-1], lengths[-1], True)


def test_boundaries_by_hand() -> None:
    made = plan(3, 2)
    assert made.boundaries == (3, 5)
    assert [(made.at(s).index, made.at(s).step) for s in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [made.at(s).is_last for s in range(6)] == [False, False, False, True, True, True]
    assert made.at(3).stage.sequence_length == 256


def test_lr_counts_from_1() -> None:
    made = StagePlan([Stage(128, 3, 8, lr=4.0, warmup="2 steps", decay="linear"), Stage(512, 2, 8, lr=10.0)])
    assert [made.lr(step) for step in range(1, 6)] == [2.0, 4.0, 0.0, 5.0, 0.0]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_locate_every_step(lengths: list[int]) -> None:
    made = plan(*lengths)
    located = [made.locate(step) for step in range(1, made.total_steps + 1)]
    want = [(made.stages[i], step) for i, length in enumerate(lengths) for step in range(1, length + 1)]
    assert located == want


def test_any_iterable_of_stages() -> None:
    stages = [Stage(128, 3, 8), Stage(512, 2, 8)]
    assert StagePlan(iter(stages)).stages == tuple(stages)


def test_refused() -> None:
    refuses("stages is empty", "give at least one Stage", call=lambda: StagePlan([]))
    made = plan(3, 2)
    refuses("step is 6", "5 steps", "from 0 to 5", call=lambda: made.at(6))
    refuses("step is -1", call=lambda: made.at(-1))
    refuses("step is 0", call=lambda: made.lr(0))
    refuses("step is 6", "5 steps of the stages", "from 1 to 5", call=lambda: made.lr(6))
    refuses("no lr", call=lambda: plan(3, lr=None).lr(1))
