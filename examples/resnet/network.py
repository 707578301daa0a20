"""Residual networks (He et al. 2015, arXiv 1512.03385), from a few thousand parameters to ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]
"""Makes the normalization of so many channels."""


def group_norm(channels: int) -> nn.Module:
    """Normalization over groups of 8 channels of one image (Wu and He 2018, arXiv 1803.08494).

    What it does to an image does not depend on the others of its batch, so networks trained with different batches stay
    comparable.
    """
    return nn.GroupNorm(max(1, channels // 8), channels)


class Residual(nn.Module):
    """``relu(x + branch(x))``; x passes a 1 × 1 convolution where the shapes differ.

    Args:
        branch: Convolutions, each with its normalization; the last one's scale starts at 0, so that a block starts as
            what passes it by (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
        skip: What x passes.
    """

    def __init__(self, branch: nn.Sequential, skip: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.skip = skip
        last_scale = branch[-1].weight
        assert isinstance(last_scale, nn.Parameter)
        nn.init.zeros_(last_scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.branch(x))


def small_network(channels: int = 1, classes: int = 10, width: int = 16, norm: Norm = group_norm) -> nn.Sequential:
    """For images of 8 × 8 pixels: a 3 × 3 convolution, three blocks of two, [samples, channels, 8, 8] → [samples, classes].

    Args:
        channels: Of an image.
        classes: To tell apart.
        width: Channels of the first block; the next two have 2 and 4 times as many.
        norm: The normalization after every convolution.
    """
    layers: list[nn.Module] = [_convolution(channels, width, 3, norm=norm), nn.ReLU()]
    into = width
    for i, out in enumerate((width, 2 * width, 4 * width)):
        layers.append(_basic(into, out, stride=2 if i else 1, norm=norm))
        into = out
    return _initialized(nn.Sequential(*layers, _head(into, classes)))


def resnet50(channels: int = 3, classes: int = 1000, norm: Norm = nn.BatchNorm2d) -> nn.Sequential:
    """ResNet-50, [samples, channels, height, width] → [samples, classes]; 25,557,032 parameters with the defaults.

    A block that halves the image does so in its 3 × 3 convolution, as all later training recipes have it ("v1.5").
    """
    layers: list[nn.Module] = [_convolution(channels, 64, 7, stride=2, norm=norm), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    into = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            layers.append(_bottleneck(into, width, stride=2 if stage and not block else 1, norm=norm))
            into = 4 * width
    return _initialized(nn.Sequential(*layers, _head(into, classes)))


def _convolution(into: int, out: int, kernel: int, stride: int = 1, *, norm: Norm) -> nn.Sequential:
    convolution = nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, norm(out))


def _basic(into: int, out: int, stride: int, norm: Norm) -> Residual:
    make = partial(_convolution, norm=norm)
    branch = nn.Sequential(*make(into, out, 3, stride), nn.ReLU(), *make(out, out, 3))
    return Residual(branch, nn.Identity() if into == out and stride == 1 else make(into, out, 1, stride))


def _bottleneck(into: int, width: int, stride: int, norm: Norm) -> Residual:
    make = partial(_convolution, norm=norm)
    branch = nn.Sequential(
        *make(into, width, 1), nn.ReLU(), *make(width, width, 3, stride), nn.ReLU(), *make(width, 4 * width, 1)
    )
    return Residual(branch, nn.Identity() if into == 4 * width else make(into, 4 * width, 1, stride))


def _head(features: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


def _initialized(network: nn.Sequential) -> nn.Sequential:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return network
