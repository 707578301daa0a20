"""Image folders and crops: the right pixels, the same ones after a resume, and errors before training."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image

from examples.resnet import ImageFolders, ResNet
from examples.resnet.crops import _part, random_crop, whole_crop
from lightning_scale.errors import ConfigurationError

_COLORS = {"blue": (10, 20, 200), "red": (200, 30, 40)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images of noise a class for training; two for validation, each of one color but for a corner."""
    random = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 2)):
        for name, color in _COLORS.items():
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((40 + i, 60, 3), color, dtype=np.uint8)
                if part == "train":
                    pixels = random.integers(0, 256, pixels.shape, dtype=np.uint8)
                pixels[:10, :10] = 255
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def _data(root: Path, **options: int) -> ImageFolders:
    data = ImageFolders(str(root), **{"image_size": 16, "micro_batch_size": 4, "num_workers": 0, **options})
    data.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    data.setup("fit")
    return data


def test_held_out_images_are_the_middle_with_imagenets_mean_and_deviation(root: Path) -> None:
    (batch,) = _data(root).val_dataloader()
    images, labels = batch
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    assert labels.tolist() == [0, 0, 1, 1]  # blue before red
    for image, label in zip(images, labels.tolist(), strict=True):
        color = torch.tensor(list(_COLORS.values())[label]) / 255
        expected = (color - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        middle = image[:, 4:12, 4:12]  # the white corner lies outside
        torch.testing.assert_close(middle, expected.view(3, 1, 1).expand_as(middle))


def test_the_middle_is_the_same_part_whatever_the_orientation() -> None:
    wide = np.tile(np.arange(128, dtype=np.uint8)[None, :, None], (64, 1, 3))  # a ramp from left to right
    cut = np.array(whole_crop(Image.fromarray(wide), 56))
    assert cut.shape == (56, 56, 3)
    np.testing.assert_allclose(cut[0, :, 0], np.arange(36, 92), atol=1)  # 56 of 128 columns, from (128 - 56) / 2 on
    tall = np.array(whole_crop(Image.fromarray(wide.transpose(1, 0, 2).copy()), 56))
    np.testing.assert_array_equal(tall, cut.transpose(1, 0, 2))


def test_random_parts_lie_inside_and_have_the_drawn_areas_and_aspects() -> None:
    random = np.random.default_rng(0)
    parts = [_part(400, 400, random) for _ in range(3000)]
    assert all(left >= 0 and top >= 0 and left + w <= 400 and top + h <= 400 for left, top, w, h in parts)
    shares = np.array([w * h / 400**2 for _, _, w, h in parts])
    aspects = np.array([w / h for _, _, w, h in parts])
    assert shares.min() < 0.1 and shares.max() > 0.9 and shares.min() > 0.078
    assert aspects.min() > 0.74 and aspects.max() < 1.35
    assert abs(np.log(aspects).mean()) < 0.02  # as often wide as tall


def test_where_nothing_fits_it_is_the_middle_square() -> None:
    assert _part(1000, 10, np.random.default_rng(0)) == (495, 0, 10, 10)


def test_half_of_the_images_are_mirrored() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    cuts = [np.array(random_crop(ramp, 8, np.random.default_rng(seed))).astype(int) for seed in range(200)]
    mirrored = sum(cut[0, 0, 0] > cut[0, -1, 0] for cut in cuts)
    assert 70 < mirrored < 130


def test_a_cut_follows_from_seed_pass_and_image(root: Path) -> None:
    images = _data(root)._training
    once, again, next_pass, other_seed = images[3], images[3], images[13], _data(root, seed=1)._training[3]
    assert torch.equal(once[0], again[0])
    assert next_pass[1] == once[1]  # the same image
    assert not torch.equal(once[0], next_pass[0]) and not torch.equal(once[0], other_seed[0])


def test_folders_that_cannot_be_trained_on_are_told_before(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no folder .*nowhere"):
        _data(tmp_path / "nowhere")
    (root / "train" / "green").mkdir()
    with pytest.raises(ConfigurationError, match="green holds no image"):
        _data(root)
    Image.new("RGB", (20, 20)).save(root / "train" / "green" / "0.jpg")
    with pytest.raises(ConfigurationError, match="class green is in only one"):
        _data(root)


def test_a_model_of_other_classes_is_told_before_training(root: Path) -> None:
    data = ImageFolders(str(root), image_size=16, micro_batch_size=4, num_workers=0)
    trainer = L.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    with pytest.raises(ConfigurationError, match=r"has 2 classes but model.classes is 10"):
        trainer.fit(WithSGD(channels=3), data)


class WithSGD(ResNet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
