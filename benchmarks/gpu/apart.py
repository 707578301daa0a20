"""Work in a process of its own, so that a broken CUDA context or a kernel that never ends is that work's trouble alone."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable


def apart(name: str, work: Callable[[], bool], seconds: float) -> bool:
    """Do work in a forked process, which has all that is imported already.

    A process that has used CUDA cannot be forked, so that the caller must leave CUDA to what it gives away.

    Args:
        name: Whose work it is.
        work: Returns whether all went well.
        seconds: After these it is killed.

    Returns:
        Whether it came to its end and all went well.
    """
    sys.stdout.flush()
    process = multiprocessing.get_context("fork").Process(target=_do, args=(work,))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        print(f"{name}: killed after {seconds:.0f} s", flush=True)
    elif process.exitcode is not None and process.exitcode < 0:
        print(f"{name}: ended by signal {-process.exitcode}", flush=True)
    return process.exitcode == 0


def _do(work: Callable[[], bool]) -> None:
    sys.exit(0 if work() else 1)
