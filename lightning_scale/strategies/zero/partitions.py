"""What the strategy asks of each of DeepSpeed's optimizer wrappers, and what is relied on in all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.dtensor import AllReduce
from lightning_scale.optim.layout import LayerInfo, Layout, layer_info
from lightning_scale.strategies.zero.deepspeed_internals import insist
from lightning_scale.strategies.zero.flat import Flat

Gradients = list[tuple[Layout, list[Tensor]]]
"""This rank's gradients of every flat tensor, each with a layout of the tensors that hold them."""


class Partitions(ABC):
    """The flat tensors of one wrapper, on this rank.

    Args:
        wrapper: DeepSpeed's optimizer, around the user's.
        names: What the user's optimizer calls each parameter, by ``id``.
        frozen: The parameters that it does not step.
    """

    alike = True
    """Whether gradients are added up in buckets, so that each rank must have those of the same layers."""

    def __init__(self, wrapper: Any, names: Mapping[int, str], frozen: Sequence[Any] = ()) -> None:
        self.wrapper = wrapper
        self._names = names
        self._frozen = frozen

    @abstractmethod
    def flats(self) -> list[Flat]:
        """In the order in which they are stepped, the same on all ranks."""

    @abstractmethod
    def gradients(self) -> Gradients:
        """Of one window, between its last micro-batch and the step; to be changed in place."""

    @abstractmethod
    def copies(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is kept from step to step, in float32 where it is stepped, and what the model computes with: 1-D, as long."""

    def take_up_written(self) -> None:
        """Write into what is stepped what hooks have written into the model's weights since the last step: it stays, as it does
        where there is one copy of the weights.
        """
        pairs = [(own, live) for own, live in self.copies() if own.data_ptr() != live.data_ptr()]
        if not pairs:
            return
        pieces = [piece for pair in pairs for piece in _pieces(*pair)]
        written = [(own.to(live.dtype) != live.to(own.device)).any() for own, live in pieces]
        for (own, live), other in zip(pieces, torch.stack(written).tolist(), strict=True):
            if other:
                live = live.to(own.device)
                own.copy_(torch.where(own.to(live.dtype) == live, own, live.to(own.dtype)))

    @abstractmethod
    def before_step(self, prepare: Callable[[], None]) -> None:
        """Call ``prepare()`` in every step where `gradients` are complete and nothing has been computed of them."""

    @abstractmethod
    def forget_gradients(self) -> None:
        """Drop what micro-batches have left, as if there had been none."""

    def layer(self, p: Any, shape: Sequence[int]) -> LayerInfo:
        """A parameter as a layer."""
        insist(id(p) in self._names, "its wrapper holds a parameter that the optimizer was not given")
        full_precision = getattr(self.wrapper.optimizer, "eight_bit_except", None)
        return layer_info(self._names[id(p)], shape, full_precision or ())

    def run_before(self, method: str, prepare: Callable[[], None]) -> None:
        """Call ``prepare()`` ahead of a method of the wrapper."""
        original = getattr(self.wrapper, method)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            prepare()
            return original(*args, **kwargs)

        setattr(self.wrapper, method, replaced)

    def run_after(self, method: str, then: Callable[[], None]) -> None:
        """Call ``then()`` after a method of the wrapper, also where that raises."""
        original = getattr(self.wrapper, method)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                then()

        setattr(self.wrapper, method, replaced)

    def forget_with_zero_grad(self) -> None:
        """Let ``zero_grad()`` drop accumulated gradients, too, which DeepSpeed keeps in its own buffers."""
        self.run_before("zero_grad", self.forget_gradients)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two 1-D tensors hold the same numbers, of whatever types and devices; a weight may be NaN, which is no fault of
    DeepSpeed's.
    """

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)

    return a.shape == b.shape and all(same(own, other.to(own)) for own, other in _pieces(a, b))


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two 1-D tensors of one length in pieces of 16 MB of float32: no device has to hold a second copy of a share."""
    return zip(torch.split(a, 1 << 22), torch.split(b, 1 << 22), strict=True)


def sum_over(group: Any) -> AllReduce:
    """The sum over a process group of the training device."""
    from deepspeed.accelerator import get_accelerator

    return AllReduce((group,), get_accelerator().device_name())


def check_whole(flats: Sequence[Flat], device: torch.device) -> None:
    """Insist that the runs of all ranks together hold every element of every layer once; all ranks call it."""
    for flat in flats:
        layout = flat.layout
        held = torch.zeros(len(layout.layers), dtype=torch.float64, device=device)  # gloo and NCCL reduce these alike
        for segment in layout.runs:
            held[segment.layer] += segment.length
        assert layout.all_reduce is not None
        layout.all_reduce(held)
        for layer, numel in zip(layout.layers, held.tolist(), strict=True):
            insist(
                numel == layer.numel,
                f"the ranks hold {int(numel)} elements of {layer.name!r}, which has {layer.numel}",
            )
        if flat.loaded:
            insist(
                flat.tensor.dim() == 1 and flat.tensor.numel() == layout.tensor_numels[0],
                f"a flat tensor has {flat.tensor.numel()} elements where {layout.tensor_numels[0]} belong",
            )
