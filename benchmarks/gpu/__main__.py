"""Everything that only a GPU can tell, in one session: ``make gpu``. See `README.md` in the folder above."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from itertools import count
from pathlib import Path
from time import monotonic

from benchmarks.gpu.session import Session
from benchmarks.gpu.stages import NAMES, environment, stages

# Seconds of the session's minutes that are kept for stages that end late and for what comes after them.
_RESERVE = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        The exit status: 0; 1 where a stage failed, did not end in time or found something wrong; 2 where there is no GPU.
    """
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="benchmarks/results/<date>-gpu-<name> unless given"
    )
    parser.add_argument("--stages", nargs="+", choices=NAMES, default=NAMES, help="those alone; all unless given")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (%(default)s)")
    parser.add_argument(
        "--rehearse", action="store_true", help="on a CPU, with stand-ins for what only CUDA has; quick"
    )
    given = parser.parse_args(arguments)
    seconds = 60 * given.minutes - _RESERVE
    if seconds <= 0:
        parser.error(f"--minutes is {given.minutes:g}, and {_RESERVE:.0f} seconds of them are kept for the end")
    began = monotonic()
    missing = _missing(given.rehearse)
    if missing:
        print(missing, file=sys.stderr)
        return 2

    folder: Path = (given.output or _new_folder(given.rehearse)).resolve()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # Ends the stage that runs, too.
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-session-") as work:
            session = Session(folder, seconds, environment(Path(work), given.rehearse), began=began)
            asked = [stage for stage in stages(folder, Path(work), given.rehearse) if stage.name in given.stages]
            trouble = session.run(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
    session.say(f"not well: {', '.join(trouble)}" if trouble else "all stages ended well")
    session.say(f"written to {folder}: {' '.join(sorted(path.name for path in folder.iterdir()))}")
    return 1 if trouble else 0


def _missing(rehearse: bool) -> str:
    """What keeps a session from beginning."""
    try:
        import torch  # Here, for where nothing of it was read yet its time is a good part of the session's.
    except ImportError as error:
        return f"{sys.executable} cannot import torch ({error}): GPU_PYTHON=... gives make gpu another Python."
    if rehearse or torch.cuda.is_available():
        return ""
    return (
        "There is no CUDA device here that torch can use: run this where there is one, or rehearse it on a CPU"
        " (make gpu GPU=--rehearse)."
    )


def _new_folder(rehearse: bool) -> Path:
    """A folder for results that is not there yet."""
    if rehearse:
        return Path(tempfile.mkdtemp(prefix="gpu-rehearsal-"))
    import torch

    from benchmarks.report.files import RESULTS, slug

    stem = RESULTS / f"{date.today().isoformat()}-gpu-{slug(torch.cuda.get_device_name())}"
    names = (stem if number == 1 else stem.with_name(f"{stem.name}-{number}") for number in count(1))
    return next(folder for folder in names if not folder.exists())


if __name__ == "__main__":
    sys.exit(main())
