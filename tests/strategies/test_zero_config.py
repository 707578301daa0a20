"""What ZeROStrategy makes of a user's DeepSpeed configuration, and what it refuses, in one sentence each."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB, AdamW8bit
from lightning_scale.strategies.zero import strategy as module
from lightning_scale.strategies.zero.config import merged, needed, read
from lightning_scale.strategies.zero.refusals import (
    refuse_config,
    refuse_optimizer,
    refuse_precision,
    refuse_two_clips,
    steps_by_layer,
    unused_option,
)
from tests.distributed.zero_runs import needs_deepspeed
from tests.toys import trainer


def test_the_users_keys_are_kept_and_those_that_lose_are_named() -> None:
    theirs = {
        "zero_optimization": {"stage": 3, "sub_group_size": 5, "overlap_comm": True},
        "zero_force_ds_cpu_optimizer": True,
        "gradient_accumulation_steps": 1,
        "wall_clock_breakdown": True,
    }
    result, lost = merged(needed(1, "cpu", None, None), theirs)
    assert result["zero_optimization"] == {
        "stage": 1,
        "sub_group_size": 5,
        "overlap_comm": False,
        "offload_optimizer": {"device": "cpu"},
    }
    assert result["wall_clock_breakdown"] is True
    assert lost == [
        "zero_optimization.stage is 1, not 3",
        "zero_optimization.overlap_comm is False, not True",
        "zero_force_ds_cpu_optimizer is False, not True",
    ]
    assert theirs["zero_optimization"]["stage"] == 3


def test_a_configuration_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"steps_per_print": 3}))
    assert read(tmp_path / "a.json") == {"steps_per_print": 3}
    for text, sentence in (("{", "is not JSON"), ("[]", "it must be an object")):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ConfigurationError, match=sentence):
            read(tmp_path / "b.json")
    with pytest.raises(ConfigurationError, match="there is no DeepSpeed configuration"):
        read(str(tmp_path / "c.json"))


REFUSED: dict[str, dict[str, Any]] = {
    "ZenFlow": {"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}},
    "SuperOffload": {"zero_optimization": {"offload_optimizer": {"device": "cpu", "super_offload": True}}},
    "partial offload": {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
    "elastic checkpoints": {"zero_optimization": {"elastic_checkpoint": True}},
    "elasticity": {"elasticity": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True}},
    "torch_autocast": {"torch_autocast": {"enabled": True, "dtype": "float16"}},
    "pipeline": {"pipeline": {"stages": 2}},
    "hpZ": {"zero_optimization": {"zero_hpz_partition_size": 8}},
    "MiCS": {"zero_optimization": {"mics_shard_size": 8}},
    "quantized gradients": {"zero_optimization": {"zero_quantized_gradients": True}},
    "an optimizer": {"optimizer": {"type": "Adam"}},
    "a scheduler": {"scheduler": {"type": "WarmupLR"}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_was_not_tested_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        refuse_config(REFUSED[name])
    refuse_config(
        {"zero_optimization": {"mics_shard_size": -1, "zero_hpz_partition_size": 1}, "fp16": {"enabled": False}}
    )


def _parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 2))]


def test_layer_wise_optimizers_of_others_are_refused() -> None:
    import pytorch_optimizer
    import torch_optimizer

    for theirs in (torch_optimizer.Lamb, pytorch_optimizer.Lamb, pytorch_optimizer.LARS, pytorch_optimizer.AdaFactor):
        with pytest.raises(ConfigurationError, match="use LAMB, LARS"):
            refuse_optimizer(theirs(_parameters(), lr=0.1))
    mine = type("MyLamb", (torch_optimizer.Lamb,), {})
    with pytest.raises(ConfigurationError, match="MyLamb"):
        refuse_optimizer(mine(_parameters()))
    for name in ("FusedLamb", "FusedLAMB", "OneBitLamb", "LAMB8bit", "LARS8bit", "PytorchLARS", "LARC"):
        with pytest.raises(ConfigurationError, match=name):
            refuse_optimizer(type(name, (torch.optim.SGD,), {})(_parameters(), lr=0.1))
    for fine in (LAMB(_parameters()), AdamW8bit(_parameters()), torch.optim.AdamW(_parameters())):
        refuse_optimizer(fine)


def test_optimizers_are_tried_on_slices() -> None:
    """Whatever they are called; those that step element by element pass, also where they draw numbers, or cannot be tried."""
    import pytorch_optimizer

    for theirs in (
        *(torch.optim.Muon, torch.optim.Adafactor),
        *(pytorch_optimizer.StableAdamW, pytorch_optimizer.SOAP, pytorch_optimizer.SCION, pytorch_optimizer.RACS),
    ):
        nameless = type("Nameless", (theirs,), {})
        optimizer = nameless(_parameters(), lr=0.1)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)  # whose first rate is 0
        assert steps_by_layer(optimizer), theirs

    class OfTheNorm(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for p in self.param_groups[0]["params"]:
                p.grad /= p.grad.norm()
            return super().step(closure)

    class Noisy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for p in self.param_groups[0]["params"]:
                p.grad += torch.randn_like(p)
            return super().step(closure)

    class NeedsMore(torch.optim.SGD):
        def __init__(self, params: Any, model: nn.Module) -> None:
            super().__init__(params, lr=0.1)

    with pytest.raises(ConfigurationError, match="OfTheNorm computes its step from whole layers"):
        refuse_optimizer(OfTheNorm(_parameters(), lr=0.1))
    state = torch.get_rng_state()
    for fine in (Noisy(_parameters(), lr=0.1), NeedsMore(_parameters(), nn.Identity())):
        refuse_optimizer(fine)
    for kind in (
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        pytorch_optimizer.Lion,
    ):
        refuse_optimizer(kind(_parameters(), lr=1e-3, weight_decay=0.1))
    refuse_optimizer(torch.optim.SGD(_parameters(), lr=0.1, momentum=0.9, nesterov=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_two_clips_and_float16_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="keep one of the two"):
        refuse_two_clips(LAMB(_parameters(), max_grad_norm=1.0), 0.5)
    refuse_two_clips(LAMB(_parameters(), max_grad_norm=1.0), 0.0)
    refuse_two_clips(LAMB(_parameters()), 0.5)
    with pytest.raises(ConfigurationError, match="bf16-mixed"):
        refuse_precision("16-mixed")


def test_stepping_on_nan_is_said_to_be_out_of_reach() -> None:
    """Except where DeepSpeed was told not to look."""
    optimizer = LAMB(_parameters(), skip_nonfinite=False)
    for stage in (1, 2, 3):
        zero = {"zero_optimization": {"stage": stage}}
        assert "skip_nonfinite=False is not used" in (unused_option(optimizer, zero) or "")
        assert unused_option(optimizer, {**zero, "bf16": {"enabled": True}})
        assert unused_option(LAMB(_parameters()), zero) is None
        assert unused_option(torch.optim.AdamW(_parameters()), zero) is None
        blind = {"zero_optimization": {"stage": stage, "compute_grad_norm": False}}
        assert bool(unused_option(optimizer, blind)) == (stage == 3)
        assert unused_option(optimizer, {**blind, "bf16": {"enabled": True}})


def test_without_deepspeed_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lightning_scale\[deepspeed\]'"):
        module.ZeROStrategy()


def test_the_package_is_imported_without_deepspeed() -> None:
    import subprocess
    import sys

    code = "import sys, lightning_scale.strategies; assert 'deepspeed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"stage": 4}, "ZeRO has the stages 1, 2 and 3"),
    ({"offload_optimizer": "disk"}, 'write "cpu" or "nvme"'),
    ({"offload_parameters": "cpu"}, "needs stage=3"),
    ({"partition_while_building": True}, "needs stage=3"),
    ({"offload_optimizer": "nvme", "nvme_path": "/x"}, "allow_unverified_nvme=True"),
    ({"config": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}}, "allow_unverified_nvme=True"),
    ({"stage": 3, "offload_optimizer": "nvme", "allow_unverified_nvme": True}, "needs nvme_path"),
]


@needs_deepspeed
@pytest.mark.parametrize(("arguments", "sentence"), SENTENCES)
def test_arguments_that_cannot_be(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        module.ZeROStrategy(**arguments)


@needs_deepspeed
def test_warnings() -> None:
    with pytest.warns(UserWarning, match="wrong by 0.075"):
        made = module.ZeROStrategy(3, "nvme", nvme_path="/x", allow_unverified_nvme=True)
    assert made.config["zero_optimization"]["offload_optimizer"] == {"device": "nvme", "nvme_path": "/x"}
    with pytest.warns(UserWarning, match=r"zero_optimization.stage is 2, not 3: leave the key out"):
        module.ZeROStrategy(config={"zero_optimization": {"stage": 3}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.ZeROStrategy(config={"zero_optimization": {"stage": 2}})


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_names(stage: int, tmp_path: Path) -> None:
    import lightning_scale.strategies  # noqa: F401

    for name in (f"zero{stage}", f"zero{stage}_offload"):
        made: Any = trainer(tmp_path, [], strategy=name).strategy
        assert isinstance(made, module.ZeROStrategy)
        assert made.config["zero_optimization"]["stage"] == stage
        assert ("offload_optimizer" in made.config["zero_optimization"]) == ("offload" in name)


@needs_deepspeed
def test_other_accelerators_are_refused() -> None:
    made = module.ZeROStrategy()
    made._accelerator = object()
    with pytest.raises(ConfigurationError, match="accelerator is object"):
        made.setup_environment()
