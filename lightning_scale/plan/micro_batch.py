"""Makes micro-batches of any number of samples with the shapes that the loader gives, and without contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

LOOKED_AT = 16
"""The number of samples that are read of each stage's data; the longest stands for all."""


class Unknown(Exception):
    """Something that cannot be told without training; the message is a sentence without its full stop."""


@dataclass(frozen=True)
class BatchShapes:
    """A loader's micro-batch, made of one sample two and three times: what grows between them grows with samples."""

    two: Any
    three: Any

    def of(self, samples: int, floating: torch.dtype | None = None) -> Any:
        """Return a new micro-batch on the CPU, with anything in its tensors.

        Args:
            samples: The number of samples in it.
            floating: The dtype of its floating-point tensors; None leaves them as they are.
        """
        return _grown(self.two, self.three, samples, floating)


def read(loaders: Sequence[Any]) -> BatchShapes | Unknown:
    """Read a few samples and put the longest of them together as the loader does; or say why that cannot be done."""
    try:
        if len(loaders) != 1:
            raise Unknown(f"there are {len(loaders)} training loaders")
        return _shapes(loaders[0])
    except Unknown as error:
        return error
    except Exception as error:  # the user's data set, which may not be here
        return Unknown(f"no sample could be read ({first_line(error)})")


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def _shapes(loader: Any) -> BatchShapes:
    if getattr(loader, "dataset", None) is None or getattr(loader, "batch_sampler", None) is None:
        raise Unknown("the training loader does not make micro-batches of single samples")
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        samples = list(islice(iter(dataset), LOOKED_AT))
    else:
        samples = [dataset[i] for i in range(min(LOOKED_AT, len(dataset)))]
    if not samples:
        raise Unknown("the training data has no sample")
    longest = max(samples, key=_elements)
    found = BatchShapes(loader.collate_fn([longest] * 2), loader.collate_fn([longest] * 3))
    if _elements(found.three) == _elements(found.two):
        raise Unknown("no tensor of a micro-batch grows with its samples")
    return found


def _elements(item: Any) -> int:
    if isinstance(item, (Mapping, list, tuple)):
        return sum(map(_elements, item.values() if isinstance(item, Mapping) else item))
    size = getattr(item, "size", None)  # an array's
    return item.numel() if isinstance(item, Tensor) else size if isinstance(size, int) else 0


def _grown(two: Any, three: Any, samples: int, floating: torch.dtype | None) -> Any:
    def again(a: Any, b: Any) -> Any:
        return _grown(a, b, samples, floating)

    if isinstance(two, Tensor):
        shape = [a + (b - a) * (samples - 2) for a, b in zip(two.shape, three.shape, strict=True)]
        dtype = floating if floating is not None and two.is_floating_point() else two.dtype
        return torch.empty(shape, dtype=dtype, device="cpu")
    if isinstance(two, Mapping):
        return type(two)({key: again(two[key], three[key]) for key in two})  # type: ignore[call-arg]
    if isinstance(two, tuple) and hasattr(two, "_fields"):
        return type(two)(*map(again, two, three))
    if isinstance(two, (list, tuple)):
        if len(two) == len(three):
            return type(two)(map(again, two, three))
        return type(two)(again(two[0], two[0]) for _ in range(samples))  # one item for each sample
    return two
