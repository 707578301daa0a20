"""Image classification with a residual network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import lightning.pytorch as L
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from examples.resnet.network import resnet50, small_network
from lightning_scale.errors import ConfigurationError

_MAKERS: dict[str, Callable[..., nn.Module]] = {"small": small_network, "resnet50": resnet50}


class ResNet(L.LightningModule):
    """A residual network that tells images apart; cross-entropy with smoothed labels.

    Logs ``train_loss`` at every micro-batch, and ``val_loss`` (without smoothing) and ``val_accuracy`` over the held-out
    images of all ranks. It has no ``configure_optimizers``: the optimizer is the configuration's (``optimizer:``), or a
    subclass's. A batch is a pair: images [samples, channels, height, width], labels [samples].

    Args:
        size: "small" (three blocks, 77,754 parameters with one channel and ten classes) or "resnet50".
        channels: Of an image.
        classes: To tell apart.
        label_smoothing: The share of the target that is spread over all classes (Szegedy et al. 2015, arXiv 1512.00567).

    Raises:
        ConfigurationError: for an unknown size, or an argument out of range.
    """

    def __init__(
        self,
        size: Literal["small", "resnet50"] = "small",
        channels: int = 1,
        classes: int = 10,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if size not in _MAKERS:
            raise ConfigurationError(f'model.size is {size!r}: write "small" or "resnet50".')
        for name, value in (("channels", channels), ("classes", classes)):
            if value < 1:
                raise ConfigurationError(f"model.{name} is {value}: write a whole number of at least 1.")
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError(f"model.label_smoothing is {label_smoothing}: write a share from 0 to below 1.")
        self.save_hyperparameters()
        self.classes = classes
        self.label_smoothing = label_smoothing
        self.network = _MAKERS[size](channels=channels, classes=classes)
        self.val_loss: Metric = MeanMetric()
        self.val_accuracy: Metric = MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [samples, classes]."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images).float(), labels, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images).float()
        self.val_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.val_accuracy.update((logits.argmax(-1) == labels).float())
        for metric in ("val_loss", "val_accuracy"):
            self.log(metric, getattr(self, metric), prog_bar=True, batch_size=len(labels))
