"""The DataModule: stages, resumes, fixed validation, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.bert import TextData
from examples.bert.masking import IGNORED
from lightning_scale.data import StageData
from lightning_scale.errors import ConfigurationError

Make = Callable[..., TextData]


def _same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


def test_a_stage_sets_length_size_and_number(text_data: Make) -> None:
    data = text_data()
    data.set_stage(StageData(0, sequence_length=24, micro_batch_size=4, samples=200, samples_consumed=0))
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 50
    assert {tuple(batch["input_ids"].shape) for batch in batches} == {(4, 24)}
    assert {tuple(batch["targets"].shape) for batch in batches} == {(4, 4)}  # 15 % of 24
    assert all((batch["targets"] != IGNORED).all() for batch in batches)


def test_an_example_looks_like_a_sample_of_the_stage(text_data: Make) -> None:
    data, closed = text_data(), TextData(["nobody opens this"], micro_batch_size=4)
    for one in (data, closed):
        one.set_stage(StageData(0, sequence_length=24, micro_batch_size=4, samples=200, samples_consumed=0))
    example, sample = closed.example_sample(), data.train_dataloader().dataset[0]
    assert {key: (value.shape, value.dtype) for key, value in example.items()} == {
        key: (value.shape, value.dtype) for key, value in sample.items()
    }


def test_a_stage_may_leave_the_micro_batch_to_the_data(text_data: Make) -> None:
    data = text_data(micro_batch_size=6)
    data.set_stage(StageData(0, 16, None, 18, 0))
    assert [len(batch["input_ids"]) for batch in data.train_dataloader()] == [6, 6, 6]
    assert len(next(iter(data.val_dataloader()))["input_ids"]) == 6


def test_a_resumed_stage_goes_on_where_it_was(text_data: Make) -> None:
    data, resumed = text_data(), text_data()
    data.set_stage(StageData(1, 16, 4, 240, 0))
    resumed.set_stage(StageData(1, 16, 4, 240, 4 * 41))
    assert _same(list(data.train_dataloader())[41:], list(resumed.train_dataloader()))


def test_passes_stages_and_seeds_hide_other_tokens(text_data: Make) -> None:
    def batches(stage: int, seed: int) -> list[dict[str, Any]]:
        data = text_data(seed=seed)
        data.set_stage(StageData(stage, 16, 8, 16, 0))
        return list(data.train_dataloader())

    assert _same(batches(0, 0), batches(0, 0))
    assert not _same(batches(0, 0), batches(1, 0))
    assert not _same(batches(0, 0), batches(0, 1))


def test_without_stages_an_epoch_is_one_pass(text_data: Make) -> None:
    data = text_data(sequence_length=16, micro_batch_size=8)
    samples = len(data.text.training) // 15
    batches = list(data.train_dataloader())
    assert len(batches) == samples // 8
    restored = {
        tuple(row.tolist())
        for batch in batches
        for row in batch["input_ids"].scatter(1, batch["positions"], batch["targets"])
    }
    assert len(restored) == 8 * len(batches)  # every sample once


def test_validation_follows_the_stages_length_and_never_changes(text_data: Make) -> None:
    data = text_data()
    without = list(data.val_dataloader())
    assert {batch["input_ids"].shape[1] for batch in without} == {16}
    data.set_stage(StageData(1, 32, 8, 10, 0))
    second = list(data.val_dataloader())
    assert {batch["input_ids"].shape[1] for batch in second} == {32}
    assert sum(len(batch["input_ids"]) for batch in second) == len(data.text.validation) // 31
    data.set_stage(StageData(3, 32, 8, 10, 40))
    assert _same(second, list(data.val_dataloader()))


def test_the_frequency_guess_follows_the_stages_length(text_data: Make) -> None:
    data = text_data()
    short = data.frequency_guess_loss()
    data.set_stage(StageData(0, 48, 8, 10, 0))
    long = data.frequency_guess_loss()
    words = 20  # almost equally frequent
    assert short != long
    assert short == pytest.approx(math.log(words), abs=0.35)
    assert long == pytest.approx(short, abs=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 15}, r"data\.vocab_size is 15: .* at least 16 and at most 65536"),
        ({"vocab_size": 65_537}, "at most 65536"),
        ({"sequence_length": 2}, r"data\.sequence_length is 2"),
        ({"micro_batch_size": 0}, r"data\.micro_batch_size is 0"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
        ({"seed": -1}, r"data\.seed is -1"),
        ({"validation_share": 0.0}, r"data\.validation_share is 0\.0: write a share between 0 and 1"),
        ({"validation_share": 1.0}, "between 0 and 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TextData(**options)


def test_too_little_text_for_one_sample_is_refused(text_data: Make) -> None:
    data = text_data()
    data.set_stage(StageData(0, 5000, 4, 10, 0))
    with pytest.raises(ConfigurationError, match=r"training text has \d+ tokens, too few for one sample of 5000: use"):
        data.train_dataloader()
    with pytest.raises(ConfigurationError, match="held-out text has"):
        data.val_dataloader()


def test_a_checkpoint_of_another_text_is_refused(text_data: Make, tmp_path: Path) -> None:
    data = text_data()
    state = data.state_dict()
    text_data().load_state_dict(state)
    other = text_data(cache_dir=str(tmp_path), vocab_size=64)
    with pytest.raises(ConfigurationError, match="the checkpoint was trained on another text or vocabulary"):
        other.load_state_dict(state)


def test_setup_before_prepare_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no prepared text: call prepare_data\(\) first"):
        TextData(cache_dir=str(tmp_path / "none")).setup("fit")
