"""The part of an image that the network sees. Imports Pillow where it is used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10
_MARGIN = 256 / 224  # the held-out images' shorter side, as a multiple of what is cut from their middle


def random_crop(image: Image, size: int, random: np.random.Generator) -> Image:
    """A random part, scaled to a square, mirrored half of the time (Szegedy et al. 2014, arXiv 1409.4842).

    The part has 8 to 100 % of the area and an aspect ratio from 3/4 to 4/3, drawn from its logarithm; where none of ten
    draws fits into the image, it is the largest square in the middle.

    Args:
        image: Of any size.
        size: The square's height and width, in pixels.
        random: Where the draws come from.
    """
    from PIL import Image as images

    left, top, width, height = _part(image.width, image.height, random)
    box = (left, top, left + width, top + height)
    cut = image.resize((size, size), images.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return cut.transpose(images.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else cut


def whole_crop(image: Image, size: int) -> Image:
    """The middle square of an image whose shorter side is scaled to 256/224 of ``size``, [size, size]."""
    from PIL import Image as images

    side = min(image.width, image.height) / _MARGIN  # of the square, in the image's own pixels
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), images.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def _part(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height."""
    for _ in range(_TRIES):
        area = width * height * random.uniform(*_AREA)
        aspect = math.exp(random.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(0, width - w + 1)), int(random.integers(0, height - h + 1)), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side
