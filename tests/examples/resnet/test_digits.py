"""The digits: every image once, in the file's order, and resumable."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

from examples.resnet import Digits
from examples.resnet.digits import load_digits
from lightning_scale.errors import ConfigurationError


def test_the_parts_are_the_file_in_its_order() -> None:
    from sklearn import datasets

    file = datasets.load_digits()
    first, second = load_digits(1500, 297)
    assert first.labels.tolist() + second.labels.tolist() == file.target.tolist()
    pixels = torch.from_numpy(file.images).float()
    expected = (pixels - pixels[:1500].mean()) / pixels[:1500].std()
    torch.testing.assert_close(torch.cat([first.images, second.images]), expected.unsqueeze(1))
    assert first.images.mean().abs() < 1e-5 and abs(first.images.std() - 1) < 1e-5


def test_parts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="1796 images together"):
        load_digits(1500, 296)


def test_training_takes_every_image_once_and_validation_the_others() -> None:
    data = Digits(micro_batch_size=100, held_out=197)
    data.setup("fit")
    seen = torch.cat([images for images, _ in data.train_dataloader()])
    training, validation = load_digits(1600, 197)
    assert sorted(map(float, seen.sum((1, 2, 3)))) == sorted(map(float, training.images.sum((1, 2, 3))))
    assert not torch.equal(seen, training.images)  # shuffled
    held_out = torch.cat([images for images, _ in data.val_dataloader()])
    torch.testing.assert_close(held_out, validation.images)


@pytest.mark.parametrize(
    ("options", "said"), [({"micro_batch_size": 0}, "micro_batch_size is 0"), ({"held_out": 1797}, "held_out is 1797")]
)
def test_arguments_out_of_range_are_one_sentence(options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"data.{said}: write"):
        Digits(**options)


def test_without_scikit_learn_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match="pip install"):
        load_digits(1437, 360)
