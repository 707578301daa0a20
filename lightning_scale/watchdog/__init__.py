"""Lets the ranks of a run tell each other, beside the process group, that they go on, have failed, or have left."""

from __future__ import annotations

from lightning_scale.watchdog.connections import connect
from lightning_scale.watchdog.thread import Failure, Watchdog

__all__ = ["Failure", "Watchdog", "connect"]
