"""The same classes as jsonargparse builds them from YAML."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from lightning_scale.schedule import BatchSizeSchedule, LinearRamp, Stage, StepSchedule

TWO_STAGES = """
stages:
  - &stage {sequence_length: 128, micro_batch_size: 64, batch_size: 65536, steps: 7038, lr: 6e-3, warmup: 28.43%,
            power: 0.5, decay_from: stage_start, bias_correction_step: reset}
  - {<<: *stage, sequence_length: 512, micro_batch_size: 8, batch_size: 32768, steps: 1563, lr: 4e-3, warmup: 12.8%}
"""


def parse(type_: Any, text: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--stages", type=type_)
    # jsonargparse renamed it in 4.49
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return instantiate(parser.parse_args([f"--config={text}"])).stages


def test_two_stages() -> None:
    shared: dict[str, Any] = {"power": 0.5, "decay_from": "stage_start", "bias_correction_step": "reset"}
    assert parse(list[Stage], TWO_STAGES) == [
        Stage(128, 7038, 65536, 64, lr=6e-3, warmup="28.43%", **shared),
        Stage(512, 1563, 32768, 8, lr=4e-3, warmup="12.8%", **shared),
    ]


def test_batch_size_as_a_table_and_as_an_object() -> None:
    text = """
stages:
  - {sequence_length: 128, steps: 10, batch_size: 0:256 1M:512}
  - sequence_length: 128
    steps: 10
    batch_size:
      class_path: lightning_scale.schedule.LinearRamp
      init_args: {start: 16, end: 2048, over: 20B tokens, increment: 16, tokens_per_sample: 2048}
"""
    table, ramp = parse(list[Stage], text)
    assert table.schedule.changes() == [(0, 256), (1_000_000, 512)]
    assert isinstance(ramp.batch_size, LinearRamp)
    assert len(ramp.schedule.changes()) == 128


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ConstantBatchSize", "{size: 8}"),
        ("StepSchedule", "{schedule: '0:8 1M:16', unit: tokens, tokens_per_sample: 128}"),
        ("GeometricRamp", "{start: 8, end: 64, over: 1M samples}"),
        ("InsteadOfDecay", "{start: 8, milestones: [30 epochs], samples_per_epoch: 100, max_batch_size: 64}"),
    ],
)
def test_every_schedule_has_a_class_path(name: str, arguments: str) -> None:
    text = f"stages: {{class_path: lightning_scale.schedule.{name}, init_args: {arguments}}}"
    made = parse(BatchSizeSchedule, text)
    assert type(made).__name__ == name
    assert made.batch_size(0) == 8


def test_a_union_keeps_numbers_and_texts_apart() -> None:
    union = int | str | BatchSizeSchedule
    assert parse(union, "stages: 256") == 256
    assert parse(union, "stages: 0:256 1M:512") == "0:256 1M:512"
    made = parse(union, "stages: {class_path: StepSchedule, init_args: {schedule: 0:4}}")
    assert isinstance(made, StepSchedule)


def test_a_stages_sentence_reaches_the_user() -> None:
    with pytest.raises((ArgumentError, ValueError), match="longer than the stage's 10 steps"):
        parse(list[Stage], "stages: [{sequence_length: 8, steps: 10, batch_size: 4, warmup: 11 steps}]")
