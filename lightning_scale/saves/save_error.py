"""What is said when a checkpoint cannot be written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException


class SaveError(RuntimeError):
    """A checkpoint could not be written: which one, and why. Those before it are as they were."""


@contextmanager
def said_of(path: Any) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is written into a `SaveError`.

    Training stops with it: a run whose checkpoints fail loses the more the longer it goes on.
    """
    try:
        yield
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise SaveError(
            f"{path} could not be saved ({_cause(error)}; {_free(path)}): training stops here. Earlier checkpoints are"
            " whole; once there is room, the same command line with --resume auto goes on from the newest."
        ) from error


def _free(path: Any) -> str:
    """How much room there is: what ranks tell each other of an error leaves out the system's reason."""
    try:
        return f"{shutil.disk_usage(Path(path).parent).free / 1e6:.1f} MB are free there"
    except OSError:
        return "its folder cannot be seen"


def _cause(error: BaseException) -> str:
    """The system's own word, where it is among the causes: torch says only that a write failed."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (failure, _) = min(error.failures.items())
        return f"rank {rank}: {_cause(failure)}"
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
