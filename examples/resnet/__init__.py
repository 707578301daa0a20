"""A residual network on images, trained with LARS and LEGW.

Everything is imported where it is first asked for: ``import examples.resnet`` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from examples.resnet.digits import Digits
    from examples.resnet.folders import ImageFolders
    from examples.resnet.model import ResNet

__all__ = ["Digits", "ImageFolders", "ResNet"]

_HOMES = {"Digits": "digits", "ImageFolders": "folders", "ResNet": "model"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
