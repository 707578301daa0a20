"""BERT pretraining in two sequence-length stages.

Everything is imported where it is first asked for: ``import examples.bert`` loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from examples.bert.data import TextData
    from examples.bert.model import BertPretraining
    from examples.bert.report import RunReport

__all__ = ["BertPretraining", "RunReport", "TextData"]

_HOMES = {"BertPretraining": "model", "RunReport": "report", "TextData": "data"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
