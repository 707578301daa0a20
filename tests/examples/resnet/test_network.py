"""The networks: known counts and shapes, and what their blocks start as."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.parameter_sets.resnet50 import resnet50 as published_shapes
from examples.resnet.network import Residual, resnet50, small_network


def test_resnet50_has_the_published_parameters() -> None:
    with torch.device("meta"):
        network = resnet50()
    shapes = sorted(tuple(p.shape) for p in network.parameters())
    assert shapes == sorted(published_shapes())
    assert sum(p.numel() for p in network.parameters()) == 25_557_032  # as torchvision's


def test_resnet50_halves_an_image_five_times() -> None:
    network = resnet50(classes=7).eval()
    sizes: list[tuple[int, ...]] = []
    for module in network:
        module.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    blocks = [size for module, size in zip(network, sizes, strict=True) if isinstance(module, Residual)]
    assert blocks == [(256, 16, 16)] * 3 + [(512, 8, 8)] * 4 + [(1024, 4, 4)] * 6 + [(2048, 2, 2)] * 3


def test_an_image_of_the_small_network_does_not_see_its_batch() -> None:
    torch.manual_seed(0)
    network = small_network()
    for module in network.modules():  # scales of 0 would hide the branches
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight)
    images = torch.randn(6, 1, 8, 8)
    together = network(images)
    assert together.shape == (6, 10)
    one_by_one = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_starts_as_what_passes_it_by(stride: int) -> None:
    with_branch = [m for m in small_network().modules() if isinstance(m, Residual)][0 if stride == 1 else 1]
    into = 16
    x = torch.randn(3, into, 8, 8)
    torch.testing.assert_close(with_branch(x), torch.relu(with_branch.skip(x)))
