"""DeepSpeed's checkpoint folders, as far as a run must know them before it loads one."""

from __future__ import annotations

import re
from pathlib import Path

from lightning_scale.errors import ConfigurationError

_SHARE = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt$")


def refuse_other_ranks(folder: Path, world_size: int) -> None:
    """Raises ConfigurationError where another number of ranks has saved the folder: stage 3 would load a part of it first."""
    shares = {int(found[1]) for path in folder.glob("*/*.pt") if (found := _SHARE.search(path.name))}
    if shares and len(shares) != world_size:
        raise ConfigurationError(
            f"{folder} has the shares of {len(shares)} ranks, and this run has {world_size}: DeepSpeed's folders are for the same"
            " number. Resume on that many, and save with save_distributed_checkpoint=False what others shall go on from."
        )
