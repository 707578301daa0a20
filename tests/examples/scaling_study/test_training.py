"""One run: deterministic, learns, and says when it did not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.bert.tokenizer import MASK_ID
from examples.scaling_study.recipes import RECIPES
from examples.scaling_study.rows import Outcome
from examples.scaling_study.tasks import TASKS
from examples.scaling_study.tasks.task import IGNORED, MemoryDataset, Samples, Task, TaskData
from examples.scaling_study.training import _diverged, _evaluate, train


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, TaskData]:
    task = replace(TASKS["lstm"]("small"), epochs=3)
    return task, task.load(tmp_path_factory.mktemp("digits"))


def _train(digits: tuple[Task, TaskData], optimizer: str, rate: float, k: int = 4, seed: int = 0) -> Outcome:
    return train(*digits, RECIPES[optimizer], rate, k, seed, "cpu")


def test_a_seed_gives_the_same_numbers_and_another_does_not(digits: tuple[Task, TaskData]) -> None:
    first, again, other = (_train(digits, "lamb", 0.02, seed=seed) for seed in (0, 0, 1))
    assert replace(first, seconds=0.0) == replace(again, seconds=0.0)
    assert first.train_loss != other.train_loss


@pytest.mark.parametrize("optimizer", list(RECIPES))
def test_every_optimizer_learns(digits: tuple[Task, TaskData], optimizer: str) -> None:
    outcome = _train(digits, optimizer, {"sgd": 0.2, "adamw": 4e-3}.get(optimizer, RECIPES[optimizer].middle_rate), k=1)
    assert outcome.test_accuracy > 0.5 and not outcome.diverged
    assert outcome.steps == 3 * 1280 // 8


def test_a_rate_that_is_far_too_high_diverges(digits: tuple[Task, TaskData]) -> None:
    assert _train(digits, "sgd", 1e4).diverged


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((1.0, 1.0, 9.0), False), ((2.31, 1.0, 1.0), True), ((1.0, math.nan, 1.0), True), ((1.0, 1.0, math.inf), True)],
)
def test_what_counts_as_divergence(losses: tuple[float, float, float], expected: bool) -> None:
    assert _diverged(*losses, classes=10) is expected


def test_accuracy_and_loss_by_hand() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [9.0, 9.0]]])
    targets = torch.tensor([[0, 0], [1, IGNORED]])
    loss, accuracy = _evaluate(torch.nn.Identity(), Samples((logits,), targets), "cpu")
    assert accuracy == pytest.approx(2 / 3)
    parts = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1)), math.log(1 + math.exp(-3))]
    assert loss == pytest.approx(sum(parts) / 3, rel=1e-6)


def test_the_three_parts_share_no_sample(digits: tuple[Task, TaskData]) -> None:
    data = digits[1]
    sizes = [len(part.targets) for part in (data.training, data.tuning, data.test)]
    assert sizes == [1280, 157, 360]
    images = torch.cat([part.inputs[0] for part in (data.training, data.tuning, data.test)])
    from sklearn import datasets

    pixels = torch.from_numpy(datasets.load_digits().images).float()
    torch.testing.assert_close(images, (pixels - pixels[:1280].mean()) / pixels[:1280].std())


def test_positions_beyond_a_pass_are_the_next_masks_or_the_first_samples_again() -> None:
    samples = Samples((torch.arange(6),), torch.arange(6))
    assert MemoryDataset(samples).__getitems__([5, 6, 13]).targets.tolist() == [5, 0, 1]


def test_bert_hides_other_pieces_in_every_pass_of_the_same_text(tmp_path: Path) -> None:
    task = TASKS["bert"]("small")
    data = task.load(tmp_path)
    n = data.training_size
    assert n == 1280 and len(data.training.targets) == task.epochs * n
    ids, positions = data.training.inputs

    def text(sample: int) -> list[int]:  # with what was hidden put back
        whole = ids[sample].clone()
        whole[positions[sample]] = data.training.targets[sample]
        return whole.tolist()  # type: ignore[no-any-return]

    assert text(3) == text(3 + n)
    assert positions[3].tolist() != positions[3 + n].tolist()
    assert len(data.tuning.targets) == len(data.test.targets) == 400
    assert 0.02 < data.guess < 0.15
    # What the study's page says of repeating what stands in the place.
    ids, positions = data.test.inputs
    seen, targets = ids.gather(1, positions), data.test.targets
    counts = targets != IGNORED
    answers = torch.where(seen == MASK_ID, targets[counts].mode().values, seen)
    assert 0.12 < float((answers == targets)[counts].float().mean()) < 0.15  # 0.132 of Python 3.11's text
