"""A strategy that stands for any number of ranks and trains nothing: its model has shapes and no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy


class Elsewhere(ParallelStrategy):
    """Rank 0 of a machine that is not here.

    Args:
        ranks: How many there are.
    """

    strategy_name = "lightning_scale_plan"

    def __init__(self, ranks: int) -> None:
        super().__init__(parallel_devices=[torch.device("cpu")])
        self._ranks = ranks

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def world_size(self) -> int:
        return self._ranks

    @property
    def is_distributed(self) -> bool:
        """Whether Lightning gives plain loaders a distributed sampler."""
        return self._ranks > 1

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self._ranks, "rank": 0}

    def model_to_device(self) -> None:
        """Leave it without memory."""

    def teardown(self) -> None:
        """There is nothing to bring back from a device."""

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """What a module's ``configure_model`` builds takes no memory."""
        with torch.device("meta"):
            yield

    def process_dataloader(self, dataloader: object) -> object:
        return Unread(dataloader)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def all_reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def all_gather(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Nobody else is there."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        yield


class Unread:
    """A loader as it is, but for its samples: none is opened, and no worker started."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)
