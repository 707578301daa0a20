"""DeepSpeed's checkpoint folders: loaded without code, or the error says which version loads otherwise; for as many ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_scale.errors import ConfigurationError, UnsafeCheckpointError
from lightning_scale.strategies.zero import deepspeed_internals, folders
from lightning_scale.strategies.zero.refusals import refuse_config
from tests.checkpoints.traps import Trap
from tests.distributed.zero_runs import needs_deepspeed


@needs_deepspeed
def test_loads_what_deepspeed_stores_and_nothing_else(tmp_path: Path) -> None:
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    engine = SimpleNamespace(optimizer=None, checkpoint_engine=TorchCheckpointEngine())
    folders.load_plainly(engine)
    stored = {"stage": ZeroStageEnum.gradients, "place": fragment_address(3, 4), "scale": LossScaler(1.0)}
    file, trap = tmp_path / "x.pt", tmp_path / "sprung"
    torch.save({**stored, "weights": torch.arange(3.0)}, file)
    folders.check_folder(tmp_path)
    found = engine.checkpoint_engine.load(str(file), map_location="cpu")
    assert found["stage"] is ZeroStageEnum.gradients and found["place"] == fragment_address(3, 4)
    assert found["scale"].cur_scale == 1.0 and found["weights"].tolist() == [0, 1, 2]
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({**stored, "more": Trap(trap)}, file, **options)
        with pytest.raises(UnsafeCheckpointError, match=r"x\.pt was not loaded, .* asks for posix\.system"):
            engine.checkpoint_engine.load(str(file), map_location=lambda storage, place: storage)
        with pytest.raises(UnsafeCheckpointError, match=r"x\.pt was not loaded, .* asks for posix\.system"):
            folders.check_folder(tmp_path)
    assert not trap.exists()
    assert LossScaler not in torch.serialization.get_safe_globals()  # nothing stays allowed


@needs_deepspeed
def test_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"deepspeed 0\.\S+ has no DeepSpeedEngine\.optimizer"):
        folders.load_plainly(SimpleNamespace())
    with pytest.raises(RuntimeError, match=r"deepspeed 0\.\S+: checkpoints are loaded by SimpleNamespace"):
        folders.load_plainly(SimpleNamespace(optimizer=None, checkpoint_engine=SimpleNamespace()))
    monkeypatch.delattr("deepspeed.runtime.zero.config.ZeroStageEnum")
    with pytest.raises(RuntimeError, match=r"deepspeed 0\.\S+ has no deepspeed\.runtime\.zero\.config\.ZeroStageEnum"):
        deepspeed_internals.stored_classes()


@pytest.mark.parametrize(
    "config",
    [
        {"checkpoint": {"writer": {"type": "fast"}}},
        {"checkpoint": {"load_universal": True}},
        {"datastates_ckpt": {"a": 1}},
    ],
)
def test_other_ways_of_loading_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="which lightning_scale has not tested"):
        refuse_config(config)
    refuse_config({"checkpoint": {"tag_validation": "Ignore"}})


@pytest.mark.parametrize("prefix", ["", "bf16_"])  # BF16_Optimizer's
def test_another_number_of_ranks_is_refused(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "checkpoint").mkdir()
    for rank in range(2):
        (tmp_path / "checkpoint" / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        (tmp_path / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").touch()  # on stage 3
    folders.refuse_other_ranks(tmp_path, 2)
    with pytest.raises(ConfigurationError, match="has the shares of 2 ranks, and this run has 3"):
        folders.refuse_other_ranks(tmp_path, 3)


def test_other_folders_are_left_to_deepspeed(tmp_path: Path) -> None:
    folders.refuse_other_ranks(tmp_path, 2)
