"""Images in folders, one folder a class, as ImageNet is laid out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from examples.resnet.crops import random_crop, whole_crop
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL.Image import Image

_ENDINGS = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of red, green and blue from 0 to 1


class ImageFolder(Dataset[tuple[Tensor, Tensor]]):
    """Images of one folder a class, classes in the order of their folders' names.

    Args:
        root: The folder of the classes' folders.
        cut: Makes the network's input from an image, [height, width, 3] of bytes, and the sample's position
            (``pass · len + index``).

    Raises:
        ConfigurationError: where the folder is missing, holds no classes, or a class has no image.
    """

    def __init__(self, root: Path, cut: Callable[[Image, int], Image]) -> None:
        if not root.is_dir():
            raise ConfigurationError(f"there is no folder {root}: write in data.root where train/ and val/ lie.")
        self.root = root
        self.cut = cut
        self.classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        if not self.classes:
            raise ConfigurationError(f"{root} holds no folders: it needs one for each class, with its images.")
        self.files: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            found = sorted(str(f) for f in (root / name).iterdir() if f.suffix.lower() in _ENDINGS)
            if not found:
                raise ConfigurationError(
                    f"{root / name} holds no image ({', '.join(sorted(_ENDINGS))}): fill it, or take it away."
                )
            self.files += [(file, label) for file in found]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        file, label = self.files[position % len(self)]
        with Image.open(file) as image:
            cut = self.cut(image.convert("RGB"), position)
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float().div_(255)
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _DEVIATION))
        return (pixels - mean) / deviation, torch.tensor(label)


class ImageFolders(L.LightningDataModule):
    """ImageNet, or anything laid out like it: ``train/<class>/*.jpeg`` and ``val/<class>/*.jpeg``.

    Training images are cut at random and mirrored at random, both drawn from the seed, the pass and the image: a resumed
    run, or one with another number of workers, sees the same. A batch is a pair: images [samples, 3, image_size,
    image_size] float32, labels [samples] int64.

    Args:
        root: The folder of ``train`` and ``val``.
        image_size: Height and width of what the network sees, in pixels.
        micro_batch_size: Images in one rank's micro-batch; for validation too.
        num_workers: Worker processes of each loader.
        seed: Which order and which cuts.

    Raises:
        ConfigurationError: for an argument out of range, and for folders that are missing or empty.
    """

    channels = 3

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        micro_batch_size: int = 64,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, low in (
            ("image_size", image_size, 1),
            ("micro_batch_size", micro_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value < low:
                raise ConfigurationError(f"data.{name} is {value}: write a number of at least {low}.")
        self.root = Path(root)
        self.image_size = image_size
        self.micro_batch_size = micro_batch_size
        self.num_workers = num_workers
        self.seed = seed

    def setup(self, stage: str) -> None:
        self._training = ImageFolder(self.root / "train", _RandomCrop(self.image_size, self.seed))
        self._validation = ImageFolder(self.root / "val", _WholeCrop(self.image_size))
        if self._training.classes != self._validation.classes:
            one = sorted(set(self._training.classes) ^ set(self._validation.classes))[0]
            raise ConfigurationError(f"{self.root}: the class {one} is in only one of train and val: make them alike.")
        classes = getattr(getattr(self.trainer, "lightning_module", None), "classes", None)
        if classes is not None and classes != len(self._training.classes):
            raise ConfigurationError(
                f"{self.root} has {len(self._training.classes)} classes but model.classes is {classes}: write"
                f" model.classes {len(self._training.classes)}."
            )

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = ResumableBatchSampler(len(self._training), self.micro_batch_size, seed=self.seed, positions=True)
        return DataLoader(self._training, batch_sampler=sampler, num_workers=self.num_workers, pin_memory=_has_cuda())

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self._validation,
            batch_size=self.micro_batch_size,
            num_workers=self.num_workers,
            pin_memory=_has_cuda(),
        )

    def example_sample(self) -> tuple[Tensor, Tensor]:
        """A sample without content, for `lightning-scale plan`."""
        return torch.zeros(3, self.image_size, self.image_size), torch.zeros((), dtype=torch.int64)


class _RandomCrop:
    """`random_crop` with random numbers of the sample's own; a class, so that worker processes can be sent it."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def __call__(self, image: Image, position: int) -> Image:
        return random_crop(image, self.size, np.random.default_rng((self.seed, position)))


class _WholeCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image, position: int) -> Image:
        return whole_crop(image, self.size)


def _has_cuda() -> bool:
    return torch.cuda.is_available()
