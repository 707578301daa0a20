"""How much of the machine others used meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter, process_time


class Others:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._began = self._now()

    def share(self) -> float | None:
        """Of all cores' time, what was not this process's: other processes', or stolen by a hypervisor; None if unknown."""
        now = self._now()
        if now is None or self._began is None:
            return None
        busy, own, wall = (after - before for after, before in zip(now, self._began, strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds that the cores were busy, that this process used, and that went by."""
        try:
            fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        user, nice, system, _, _, interrupts, soft, stolen = fields
        busy = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
        return busy, process_time(), perf_counter()
