"""Pictures that callbacks leave at the end of a run. matplotlib is imported where one is drawn."""

from __future__ import annotations

from lightning_scale.pictures.at_end import PictureAtEnd
from lightning_scale.pictures.looks import Looks

__all__ = ["Looks", "PictureAtEnd"]
