"""A picture that one rank writes once, when fit ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

log = logging.getLogger(__name__)


class EndOfFitPicture:
    """Writes a callback's picture when fit ends, also where it ends by an exception.

    Args:
        file: The picture's file name.
        wanted: Whether a picture is written at all.
        folder: The folder that it goes to; ``None`` for the run's log folder.
    """

    def __init__(self, file: str, wanted: bool, folder: str | None) -> None:
        self._file, self._wanted, self._folder = file, wanted, folder
        self._path: Path | None = None

    def begin(self, trainer: L.Trainer, who: str) -> None:
        """Find the folder; to be called in ``on_fit_start`` on every rank.

        ``log_dir`` takes a collective, and after an exception another rank may no longer be there for it.
        """
        self._path = None
        if not self._wanted:
            return
        if find_spec("matplotlib") is None:
            rank_zero_warn(
                f"{who} will draw no picture, for matplotlib is not installed: pip install 'lightning_scale[pictures]', or"
                " write picture: false."
            )
            return
        self._path = Path(self._folder or trainer.log_dir or trainer.default_root_dir) / self._file

    def finish(self, trainer: L.Trainer, draw: Callable[[Path], None] | None) -> None:
        """Let ``draw(path)`` write the picture, on rank 0; to be called in ``on_fit_end``, with ``None`` for nothing to draw."""
        path, self._path = self._path, None
        if draw is None or path is None or not trainer.is_global_zero:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path)
        rank_zero_info(f"picture: {path}")

    def fail(self, trainer: L.Trainer, draw: Callable[[Path], None] | None) -> None:
        """Do the same in ``on_exception``, where an error of the drawing must not hide the run's own exception."""
        try:
            self.finish(trainer, draw)
        except Exception:
            log.warning("The picture of the run that failed could not be drawn.", exc_info=True)
