"""What a larger batch saves, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_scale.callbacks import GradientAccumulation, SequenceLengthStages, Stage
from lightning_scale.optim import LAMB
from lightning_scale.plan.communication import Link
from lightning_scale.plan.configuration import Configured
from lightning_scale.plan.dry_run import DryRun, dry_run
from lightning_scale.plan.memory import shapes_of
from lightning_scale.plan.scale_up import Timing, larger_batches, larger_text
from tests.toys import Net, Vectors

BYTES = 4 * (8 * 16 + 16 + 16 + 1)


def found(callbacks: list[object], data: object = None, **options: object) -> DryRun:
    with torch.device("meta"):
        model = Net(lambda module: LAMB(module.named_parameters(), lr=0.1))
    return dry_run(model, data or Vectors(5), callbacks, options, 2)  # type: ignore[arg-type]


def rows(run: DryRun, strategy: str = "ddp", timing: Timing | None = None) -> list[dict[str, object]]:
    return larger_batches(run, shapes_of(run.model, run.optimizers[0]), Configured(strategy, "32-true"), timing)


def test_ddp_sends_half_as_much_at_twice_the_batch() -> None:
    """100 samples an epoch on 2 ranks; a batch of 20 is 2 micro-batches of 5 on each."""
    timing = Timing(Link(0.001, 1e6), 0.5)
    made = rows(found([GradientAccumulation(20)], max_epochs=2), timing=timing)
    assert [(r["batch_size"], r["micro_batches"], r["steps"]) for r in made] == [
        (20, 2, 5),
        (40, 4, 2.5),
        (80, 8, 1.25),
    ]
    assert [r["messages"] for r in made] == [5, 2.5, 1.25]
    assert [r["bytes"] for r in made] == [5 * BYTES, 2.5 * BYTES, 1.25 * BYTES]
    # log2(2) · (α + |w| β) a step; 10 micro-batches of half a second whatever the batch
    exchange = 5 * (0.001 + BYTES / 1e6)
    assert [r["exchange"] for r in made] == pytest.approx([exchange, exchange / 2, exchange / 4])
    assert [r["seconds"] for r in made] == pytest.approx([5 + exchange, 5 + exchange / 2, 5 + exchange / 4])
    text = larger_text(made, "ddp")
    assert "exchange (s)" in text and len(text.splitlines()) == 5


def test_zero_3_sends_as_much_at_any_batch() -> None:
    made = rows(found([GradientAccumulation(20)], max_epochs=1), "zero3")
    assert {r["messages"] for r in made} == {30} and {r["bytes"] for r in made} == {15 * BYTES}
    assert made[0]["seconds"] is None and "exchange" not in larger_text(made, "zero3")


def test_each_stage_has_an_epoch_of_its_own() -> None:
    stages = SequenceLengthStages([Stage(8, 5, 20, 5, lr=0.1), Stage(16, 2, 40, 10, lr=0.1)])
    made = rows(found([stages]))
    assert [(r["stage"], r["batch_size"]) for r in made] == [(1, 20), (1, 40), (1, 80), (2, 40), (2, 80)]


def test_a_batch_beyond_the_data_is_the_only_row() -> None:
    (row,) = rows(found([GradientAccumulation(70)], max_epochs=1))
    assert row["steps"] == pytest.approx(100 / 70)


def test_no_length_no_table() -> None:
    assert "not known" in larger_text([], "ddp")
