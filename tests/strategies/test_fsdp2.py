"""Options of FSDP2Strategy that are refused, unused, or decided by the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB, LAMB8bit
from lightning_scale.strategies import FSDP2Strategy
from tests.distributed.meshes import needs_fsdp2
from tests.processes.ports import free_port
from tests.toys import trainer


def test_torch_2_6_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu.Stream, "record_event", raising=False)
    with pytest.raises(ConfigurationError, match=r"FSDP2Strategy needs torch 2\.7 or later, and this is torch .*write"):
        FSDP2Strategy()


@needs_fsdp2
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"param_dtype": "float16"}, r"param_dtype is 'float16', and nothing here scales the loss.*write \"bfloat16\""),
        ({"param_dtype": "bf16"}, r"param_dtype is 'bf16': write \"bfloat16\", or leave it out"),
        ({"reduce_dtype": "half"}, r"reduce_dtype is 'half': write \"float32\" or \"bfloat16\""),
        ({"offload_parameters": "nvme"}, "offload_parameters is 'nvme'"),
    ],
)
def test_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FSDP2Strategy(**options)


class Module(L.LightningModule):
    def __init__(self, shards_itself: bool = False, make: Any = LAMB) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self._shards_itself = shards_itself
        self._make = make

    def configure_model(self) -> None:
        if self._shards_itself:
            fully_shard(self, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer.weight.square().sum()

    def configure_optimizers(self) -> Any:
        return self._make(self.parameters(), lr=0.1)


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process group of this process alone, for as long as a test."""
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _fit(root: Path, module: Module, strategy: FSDP2Strategy, **options: Any) -> L.Trainer:
    run = trainer(root, [], max_steps=1, devices=1, strategy=strategy, **options)
    run.fit(module, DataLoader(range(1)))
    return run


@needs_fsdp2
def test_float16_is_refused_before_training(one_rank: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision='16-true' computes in float16.*\"bf16-mixed\""):
        _fit(tmp_path, Module(), FSDP2Strategy(), precision="16-true")


@needs_fsdp2
def test_unused_options_bring_a_warning(one_rank: None, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="FSDP2Strategy's offload_parameters, param_dtype will not be used"):
        _fit(tmp_path, Module(True), FSDP2Strategy(offload_parameters="cpu", param_dtype="bfloat16"))


@needs_fsdp2
def test_codes_in_a_folder_are_refused_where_numbers_belong(one_rank: None, tmp_path: Path) -> None:
    _fit(tmp_path, Module(make=LAMB8bit), FSDP2Strategy()).save_checkpoint(tmp_path / "saved.ckpt")
    run = trainer(tmp_path, [], max_steps=2, devices=1, strategy=FSDP2Strategy())
    with pytest.raises(ValueError, match="and LAMB keeps it"):
        run.fit(Module(make=LAMB), DataLoader(range(1)), ckpt_path=str(tmp_path / "saved.ckpt"))


@needs_fsdp2
def test_numbers_in_a_folder_are_rounded_to_codes(one_rank: None, tmp_path: Path) -> None:
    _fit(tmp_path, Module(make=LAMB), FSDP2Strategy()).save_checkpoint(tmp_path / "saved.ckpt")
    run = trainer(tmp_path, [], max_steps=2, devices=1, strategy=FSDP2Strategy())
    run.fit(Module(make=LAMB8bit), DataLoader(range(1)), ckpt_path=str(tmp_path / "saved.ckpt"))
    assert run.global_step == 2
    states = run.optimizers[0].state.values()
    assert torch.uint8 in {t.dtype for own in states for t in own.values()}


@needs_fsdp2
def test_the_group_of_offloaded_shards_reduces_on_the_host_too() -> None:
    for offload, expected in (("cpu", "cpu:gloo,cuda:nccl"), (None, "nccl")):
        strategy = FSDP2Strategy(offload_parameters=offload)
        strategy.parallel_devices = [torch.device("cuda", 0)]
        strategy.cluster_environment = LightningEnvironment()
        assert strategy._get_process_group_backend() == expected
    assert FSDP2Strategy(offload_parameters="cpu", process_group_backend="nccl")._get_process_group_backend() == "nccl"
