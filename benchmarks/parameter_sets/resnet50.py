"""ResNet-50 (He et al. 2015) with 1,000 classes: 25,557,032 elements in 161 tensors, most of them small."""

from __future__ import annotations


def resnet50(classes: int = 1000) -> list[tuple[int, ...]]:
    """Shapes in the order of the layers."""

    def convolution(out: int, into: int, kernel: int) -> list[tuple[int, ...]]:
        return [(out, into, kernel, kernel), (out,), (out,)]  # and its batch norm

    shapes = convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, into, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, into, 1)
            into = 4 * width
    return [*shapes, (classes, into), (classes,)]
