"""Bytes of the tensors that lie in memory at once, counted while operations run."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, counts the storages that operations make until nobody holds them; also those of fake tensors.

    A storage that views share counts once. What an operation takes for itself and gives back before it ends is not seen.

    Args:
        held: Tensors whose memory is not counted.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        """Bytes that are there at present."""
        self.peak = 0
        """The most that were there at once."""
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)  # torch keeps this object while any tensor uses the storage

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
