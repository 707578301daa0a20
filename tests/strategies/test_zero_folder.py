"""Folders that DeepSpeed has saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_scale.errors import ConfigurationError
from lightning_scale.strategies.zero.folders import refuse_other_ranks


@pytest.mark.parametrize("prefix", ["", "bf16_"])  # BF16_Optimizer's
def test_another_number_of_ranks_is_refused(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "checkpoint").mkdir()
    for rank in range(2):
        (tmp_path / "checkpoint" / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        (tmp_path / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").touch()  # on stage 3
    refuse_other_ranks(tmp_path, 2)
    with pytest.raises(ConfigurationError, match="has the shares of 2 ranks, and this run has 3"):
        refuse_other_ranks(tmp_path, 3)


def test_other_folders_are_left_to_deepspeed(tmp_path: Path) -> None:
    refuse_other_ranks(tmp_path, 2)
