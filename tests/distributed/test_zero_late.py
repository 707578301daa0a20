"""What is frozen, unfrozen, or written by hooks under ZeRO: as on one process, or one sentence on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB
from tests.distributed.launch import run_ranks
from tests.distributed.zero_cases import OFFLOADED, OPTIMIZERS
from tests.distributed.zero_runs import Case, Directions, Language, data, needs_deepspeed, options, result, train, worst
from tests.toys import trainer

pytestmark = [needs_deepspeed, pytest.mark.timeout(600)]

STAGES = (1, 2, 3)
FILES = {"save_distributed_checkpoint": False}


class FreezeForAWhile(L.Callback):
    """As the sentences advise: frozen from the first step on, not before."""

    def on_train_start(self, run: L.Trainer, module: L.LightningModule) -> None:
        self.turn(module, False)

    def on_train_batch_start(self, run: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if run.global_step == 3:
            self.turn(module, True)

    def turn(self, module: L.LightningModule, on: bool) -> None:
        for name, p in module.named_parameters():
            if name.endswith(("layers_wide", "bias")):
                p.requires_grad_(on)


class Unfreeze(L.Callback):
    def on_train_batch_start(self, run: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if run.global_step == 2:
            dict(module.named_parameters())["net.frozen"].requires_grad_(True)


class AddGroup(Unfreeze):
    def on_train_batch_start(self, run: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if run.global_step == 2:
            run.optimizers[0].add_param_group({"params": [dict(module.named_parameters())["net.frozen"]]})


class Write(L.Callback):
    """Writes into weights: after every step, or after one."""

    def __init__(self, how: str, step: int | None = None) -> None:
        self.how, self.step = how, step

    def on_train_batch_end(self, run: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if self.step in (None, run.global_step):
            for p in module.parameters():
                self.write(p)

    @torch.no_grad()
    def write(self, p: Any) -> None:
        if self.how == "clamped":
            p.data.clamp_(-0.2, 0.2)
        elif self.how == "scaled":
            p.mul_(0.5)
        elif self.how == "replaced":
            p.data = p.data * 0.5
        elif hasattr(p, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([p], modifier_rank=0):
                p.mul_(0.5)
        else:
            p.mul_(0.5)


def _case(stage: int, *callbacks: Callable[[], L.Callback], offload: bool = False, **more: Any) -> Case:
    zero = {"stage": stage, **(OFFLOADED[stage] if offload else {}), **more}
    return Case("LAMB", zero, None, make_network=Directions, more=lambda: [make() for make in callbacks])


def _held() -> dict[str, Case]:
    """What must be as on one process."""
    cases = {}
    for stage in STAGES:
        cases[f"frozen for a while, stage {stage}"] = _case(stage, FreezeForAWhile)
        for how in ("clamped", "scaled", "replaced"):
            cases[f"{how}, stage {stage}"] = _case(stage, lambda how=how: Write(how))
        cases[f"clamped once, offloaded, stage {stage}"] = _case(stage, lambda: Write("clamped", 3), offload=True)
    apart = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    for offload in (False, True):
        cases[f"gathered, offload {offload}"] = _case(3, lambda: Write("gathered", 3), offload=offload, config=apart)
    return cases


HELD = _held()


class Unlike(Directions):
    """Every rank uses one layer that the others do not; they are of one size, which DeepSpeed would add up."""

    def weight_of(self, name: str, step: int) -> float | None:
        unused = "layers_last" if torch.distributed.get_rank() == 0 else "layers_first"
        return None if name == unused else 1.0


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)


class FrozenGroup(Language):
    def configure_optimizers(self) -> Any:
        return LAMB(
            [{"params": [p for p in self.parameters() if p.requires_grad]}, {"params": [self.net.frozen]}], lr=0.02
        )


class Everything(Language):
    """Gives the optimizer frozen parameters, too."""

    def configure_optimizers(self) -> Any:
        return LAMB(self.named_parameters(), lr=0.02)


class AdaptersOnly(Language):
    """Keeps two layers, in the hook that Lightning names for it."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: weights[key] for key in ("net.bias", "net.layers_wide")}
        checkpoint["mine"] = 3


class AdaptersByStateDict(Language):
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if "layers_wide" in key}


def _fit(folder: Path, case: Case, module: L.LightningModule, *callbacks: L.Callback, **more: Any) -> L.Trainer:
    L.seed_everything(0, verbose=False)
    fit = {key: more.pop(key) for key in ("ckpt_path",) if key in more}
    steps = more.pop("max_steps", case.steps)
    run = trainer(
        folder, list(callbacks), max_steps=steps, max_epochs=-1, use_distributed_sampler=False, **options(case), **more
    )
    run.fit(module, data(case), **fit)
    return run


def _said(run: Callable[[], Any]) -> str:
    with pytest.raises(ConfigurationError) as refused:
        run()
    return str(refused.value)


def sentences(folder: Path) -> dict[str, str]:
    said = {}
    for stage in STAGES:
        case = _case(stage)
        said[f"requires_grad of net.frozen was False {stage}"] = _said(
            lambda case=case: _fit(folder, case, Everything(case), Unfreeze())
        )
    said["a parameter group was added"] = _said(lambda: train(folder, _case(2, AddGroup)))
    two = _case(2)
    said["group 1 has no parameter"] = _said(lambda: _fit(folder, two, FrozenGroup(two)))
    normed = replace(two, make_network=Normed)
    said["statistics of net.norm"] = _said(lambda: _fit(folder, normed, Everything(normed), sync_batchnorm=True))
    some = replace(two, make_network=Unlike)
    said["'layers_first' (1 of 2)"] = _said(lambda: train(folder, some))
    said["a share of each"] = _said(lambda: train(folder, _case(3, lambda: EMAWeightAveraging())))
    both = [EMAWeightAveraging(), ModelCheckpoint(folder)]
    said["have no place for it"] = _said(lambda: _fit(folder, two, Language(two), *both, enable_checkpointing=True))
    OPTIMIZERS["Muon"] = lambda params: torch.optim.Muon(
        [p for p in (q for _, q in params[0]["params"]) if p.dim() == 2]
    )
    said["Muon computes its step from whole layers"] = _said(lambda: train(folder, replace(two, optimizer="Muon")))
    for stage in STAGES:
        path = folder / f"lamb{stage}.ckpt"
        train(folder, replace(_case(stage), steps=2))[0].save_checkpoint(path)
        other = replace(_case(stage), optimizer="LARS")
        said[f"saved with LAMB, and this run's optimizer is LARS {stage}"] = _said(
            lambda other=other, path=path: train(folder, other, ckpt_path=path)
        )
    return said


def files(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in STAGES:
        for kind in (AdaptersOnly, AdaptersByStateDict):
            case, path = _case(stage, **FILES), folder / f"{kind.__name__}{stage}.ckpt"
            run = _fit(folder, case, kind(case), max_steps=3)
            run.save_checkpoint(path)
            run.save_checkpoint(folder / "light.ckpt", weights_only=True)
            run.strategy.barrier()
            saved = torch.load(path, weights_only=True)
            module = kind(case)
            module.strict_loading = False
            resumed = _fit(folder, case, module, ckpt_path=path)
            found[f"{kind.__name__}, stage {stage}"] = {
                "keys": sorted(saved["state_dict"]),
                "mine": saved.get("mine"),
                "light": "optimizer_states" in torch.load(folder / "light.ckpt", weights_only=True),
                "step": resumed.global_step,
            }
    averaged = _case(2, **FILES)
    for steps, ckpt_path in ((3, None), (6, folder / "averaged3.ckpt")):
        _average(folder, averaged, f"averaged{steps}.ckpt", steps, ckpt_path)
    torch.distributed.barrier()
    found["averaged"] = torch.load(folder / "averaged6.ckpt", weights_only=True)["state_dict"]
    return found


class SaveAt(L.Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, run: L.Trainer, *args: Any) -> None:
        if run.global_step == self.step:
            run.save_checkpoint(self.path)


def _average(folder: Path, case: Case, name: str, steps: int, ckpt_path: Path | None) -> None:
    average = EMAWeightAveraging(decay=0.5)
    _fit(folder, case, Language(case), average, SaveAt(folder / name, steps), max_steps=steps, ckpt_path=ckpt_path)


def converted(folder: Path) -> list[str]:
    """The kind of a BatchNorm layer on a device that has SyncBatchNorm, of which this test knows only by name."""
    from lightning_scale.strategies.zero import strategy

    strategy.refuse_sync_batchnorm = lambda module: None  # type: ignore[assignment]
    case, kinds = replace(_case(2), make_network=Normed), []

    class Look(L.Callback):
        def on_train_start(self, run: L.Trainer, module: L.LightningModule) -> None:
            kinds.append(type(module.net.norm).__name__)
            run.should_stop = True

        def on_train_batch_start(self, *args: Any) -> int:
            return -1

    _fit(folder, case, Everything(case), Look(), sync_batchnorm=True)
    return kinds


def ranks(folder: str) -> dict[str, Any]:
    root = Path(folder)
    half = {"precision": "bf16-true"}
    found: dict[str, Any] = {name: result(root, case) for name, case in HELD.items()}
    for stage in STAGES:
        case = replace(_case(stage, lambda: Write("clamped", 3)), optimizer="LAMB-masters", fit=half)
        found[f"bfloat16, stage {stage}"] = result(root, case)["weights"]
    return {**found, "said": sentences(root), "files": files(root), "converted": converted(root)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(__name__, "ranks", tmp_path_factory.mktemp("late"), 2, timeout=300)


@pytest.mark.parametrize("name", HELD)
def test_as_on_one_process(name: str, found: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = result(tmp_path, replace(HELD[name], zero=None))
    for rank in found:
        weights, stats = worst(rank[name], expected)
        assert weights <= 2e-6 and stats <= 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_written_into_bfloat16_weights_stays(stage: int, found: list[dict[str, Any]]) -> None:
    """Seven steps of rate 0.02 after the clamp, whose ratios are at most that of a norm of 0.2 an element to one of 1."""
    for rank in found:
        wide = rank[f"bfloat16, stage {stage}"]["net.layers_wide"]
        assert wide.abs().max() < 0.3  # it begins with 1.2


def test_sentences(found: list[dict[str, Any]]) -> None:
    for name, said in found[0]["said"].items():
        assert name.rstrip(" 123") in said, (name, said)
    assert found[0]["said"] == found[1]["said"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_holds_what_hooks_leave(stage: int, found: list[dict[str, Any]]) -> None:
    by_hook = {"keys": ["net.bias", "net.layers_wide"], "mine": 3, "light": False, "step": 10}
    assert found[0]["files"][f"AdaptersOnly, stage {stage}"] == by_hook
    by_state_dict = {**by_hook, "keys": ["net.layers_wide"], "mine": None}
    assert found[0]["files"][f"AdaptersByStateDict, stage {stage}"] == by_state_dict


def test_averaged_weights_in_files(found: list[dict[str, Any]], tmp_path: Path) -> None:
    """And a run that goes on from the file goes on from both copies."""
    _average(tmp_path, replace(_case(2), zero=None), "averaged6.ckpt", 6, None)
    expected = torch.load(tmp_path / "averaged6.ckpt", weights_only=True)["state_dict"]
    for key, value in found[0]["files"]["averaged"].items():
        assert (value - expected[key]).abs().max() <= 2e-6 * expected[key].abs().max(), key


def test_sync_batchnorm_is_done_where_there_is_one(found: list[dict[str, Any]]) -> None:
    assert [rank["converted"] for rank in found] == [["SyncBatchNorm"]] * 2
