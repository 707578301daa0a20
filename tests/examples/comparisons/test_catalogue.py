"""What is compared differs in what it says, and in nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.comparisons.catalogue import COMPARISONS, CONFIGS, TWO_STAGE
from lightning_scale.schedule import Stage

_ROOT = Path(__file__).parents[3]


def _stages(variant: str) -> list[Stage]:
    config: dict[str, Any] = yaml.safe_load((_ROOT / CONFIGS / f"two_stage_{variant}.yaml").read_text())
    return [Stage(**stage) for stage in config["trainer"]["callbacks+"][0]["init_args"]["stages"]]


def test_every_file_of_a_command_is_there_and_every_panel_shows_variants_that_are() -> None:
    for comparison in COMPARISONS.values():
        names = {variant.name for variant in comparison.variants}
        assert len(names) == len(comparison.variants)
        for panel in comparison.panels:
            assert names >= set(panel.variants)
        for variant in comparison.variants:
            files = [a.removeprefix("--config=") for a in variant.arguments if a.endswith(".yaml")]
            assert files and all((_ROOT / file).is_file() for file in files)


def test_all_two_stage_runs_see_the_same_samples() -> None:
    for variant in TWO_STAGE.variants:
        assert [stage.total_samples for stage in _stages(variant.name)] == [30_720, 3_840]
        assert [stage.sequence_length for stage in _stages(variant.name)] == [32, 128]


def test_the_ramp_takes_as_many_steps_as_the_constant_batch_beside_it() -> None:
    ramp, constant = _stages("ramp")[0], _stages("batch_64")[0]
    assert ramp.steps == constant.steps == 480
    assert {ramp.schedule.batch_size(samples) for samples in (0, 7_679, 7_680, 15_360, 30_719)} == {32, 64, 128}


def test_without_a_second_warmup_the_second_stage_begins_at_its_peak() -> None:
    with_it, without = _stages("second_warmup"), _stages("one_warmup")
    assert with_it[0] == without[0]
    assert without[1].rate_factor(1) == 1
    assert without[1].rate_factor(60) == with_it[1].rate_factor(60, warmup_steps=1)
    assert with_it[1].rate_factor(1, warmup_steps=13) == pytest.approx(1 / 13)  # LEGW's
