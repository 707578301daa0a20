"""DeepSpeed's checkpoint folders: for which runs they are, and read so that nothing in them is run.

Its own checkpoint engine loads with ``weights_only=False``. Only this file knows what its files hold.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from lightning_scale.checkpoints.plain import load_plain, unsafe
from lightning_scale.errors import ConfigurationError, UnsafeCheckpointError
from lightning_scale.strategies.zero import deepspeed_internals
from lightning_scale.strategies.zero.deepspeed_internals import insist, stored_classes

_SHARE = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt$")


def refuse_other_ranks(folder: Path, world_size: int) -> None:
    """Raises ConfigurationError where another number of ranks has saved the folder: stage 3 would load a part of it first."""
    shares = {int(found[1]) for path in folder.glob("*/*.pt") if (found := _SHARE.search(path.name))}
    if shares and len(shares) != world_size:
        raise ConfigurationError(
            f"{folder} has the shares of {len(shares)} ranks, and this run has {world_size}: DeepSpeed's folders are for the same"
            " number. Resume on that many, and save with save_distributed_checkpoint=False what others shall go on from."
        )


OPTIMIZER = "zero_optimizer"
"""Under this key folders have the name of the optimizer's class."""


def refuse_other_optimizer(folder: Path, name: str) -> None:
    """Raises ConfigurationError where an optimizer of another class has saved the folder, whose state would be taken for this
    one's. All ranks look into the same file; folders of older versions do not say it.
    """
    for file in sorted(folder.glob("*/*_model_states.pt"))[:1]:
        try:
            saved = load_plain(file, allowed=stored_classes(), mmap=True).get(OPTIMIZER, name)
        except (UnsafeCheckpointError, RuntimeError, OSError):  # who loads it has a sentence for that
            return
        if saved != name:
            raise ConfigurationError(
                f"{folder} was saved with {saved}, and this run's optimizer is {name}: resume with {saved}, or begin anew from"
                " the folder's weights, which deepspeed.utils.zero_to_fp32 makes whole."
            )


def check_folder(folder: Path) -> None:
    """Look into every file of a checkpoint, without its tensors.

    So that all ranks refuse one that would have one of them stop where others have loaded.

    Raises:
        UnsafeCheckpointError: where one of them asks for more than DeepSpeed stores.
    """
    for file in sorted(folder.rglob("*.pt")):
        with torch.serialization.safe_globals(stored_classes()):
            try:
                found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            except ValueError:  # not torch's present format, in which pickle and tensors lie apart
                load_plain(file)
            else:
                if found:
                    raise unsafe(file, f"GLOBAL {found[0]}")


def load_plainly(engine: Any) -> None:
    """Let an engine load files without running anything of them.

    Args:
        engine: DeepSpeed's engine.

    Raises:
        RuntimeError: where this version of DeepSpeed loads in another way; it names the version.
    """
    deepspeed_internals.check(deepspeed_internals.ENGINE, engine)
    kind = type(engine.checkpoint_engine).__name__
    insist(kind == "TorchCheckpointEngine", f"checkpoints are loaded by {kind}")

    def load(path: str, map_location: Any = None) -> Any:
        return load_plain(path, map_location=map_location, allowed=stored_classes())

    engine.checkpoint_engine.load = load
