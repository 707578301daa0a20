"""Folders that would run something when they are loaded are refused by all ranks before anything of them is loaded."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from lightning_scale.errors import UnsafeCheckpointError
from lightning_scale.optim import LAMB
from lightning_scale.strategies import FSDP2Strategy
from tests.checkpoints.traps import Trap
from tests.distributed.launch import run_ranks
from tests.distributed.meshes import needs_fsdp2
from tests.distributed.zero_cases import CASES
from tests.distributed.zero_runs import needs_deepspeed, train
from tests.optim.kinds import bits
from tests.toys import Net, Vectors, trainer

Fit = Callable[..., tuple[L.Trainer, L.LightningModule]]


def fit_fsdp2(folder: Path, callbacks: Sequence[L.Callback] = (), strategy: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    module = Net(lambda net: LAMB(net.named_parameters(), lr=0.1))
    run = trainer(
        folder,
        list(callbacks),
        max_steps=2,
        devices=2,
        strategy=strategy or FSDP2Strategy(),
        use_distributed_sampler=False,
    )
    run.fit(module, Vectors(4), **options)
    return run, module


def fit_zero(stage: int) -> Fit:
    return lambda folder, callbacks=(), **options: train(folder, CASES[f"LAMB, stage {stage}"], callbacks, **options)


def shares(module: L.LightningModule) -> Any:
    """The bits that this rank holds of all parameters: ZeRO-3 never writes its shares' padding, which may be NaN."""
    return bits([p.to_local() if hasattr(p, "to_local") else getattr(p, "ds_tensor", p) for p in module.parameters()])


class Weights(L.Callback):
    """Keeps weights from just before a checkpoint is loaded, and the module."""

    def on_fit_start(self, run: L.Trainer, module: L.LightningModule) -> None:
        self.module, self.before = module, shares(module)
        restore = run.strategy.load_checkpoint

        def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
            try:
                return restore(*args, **kwargs)
            finally:
                self.after = shares(module)

        run.strategy.load_checkpoint = load_checkpoint


def refusals(folder: Path, fit: Fit, spoil: dict[str, Callable[[Path, Trap], None]]) -> dict[str, Any]:
    """What loading says of a folder, spoiled in one way after the other."""
    trap, good = folder / "sprung", folder / "good.ckpt"
    run, _ = fit(folder)
    run.save_checkpoint(good)
    found: dict[str, Any] = {}
    for name, change in spoil.items():
        bad = folder / f"{name}.ckpt"
        if run.global_rank == 0:
            shutil.copytree(good, bad)
            change(bad, Trap(trap))
        torch.distributed.barrier()
        look = Weights()
        try:
            fit(folder, [look], ckpt_path=bad)
        except UnsafeCheckpointError as error:
            found[name] = [str(error), look.before == look.after, len(look.after) > 0]
        torch.distributed.barrier()
        found[f"{name} ran"] = trap.exists()
    return found


def _instead(name: str) -> Callable[[Path, Trap], None]:
    """The file is a pickle of its own."""
    return lambda folder, trap: (folder / name).write_bytes(pickle.dumps(trap, 2)) and None


def _beside(name: str) -> Callable[[Path, Trap], None]:
    """Something is added to what a file holds."""

    def change(folder: Path, trap: Trap) -> None:
        content = torch.load(folder / name, weights_only=False)
        torch.save({**content, "more": trap}, folder / name)

    return change


def _inside_metadata(folder: Path, trap: Trap) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = {**metadata.planner_data, "more": trap}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _as_a_value(folder: Path, trap: Trap) -> None:
    """One of the values that are no tensors, in a rank's file, is replaced."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    key = next(k for k in metadata.storage_data if k.fqn.endswith("weight_decay"))
    place = metadata.storage_data[key]
    torch.save(trap, folder / "more.distcp")
    place.relative_path, place.offset, place.length = "more.distcp", 0, (folder / "more.distcp").stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


FSDP2 = {
    "metadata": _instead(".metadata"),
    "inside metadata": _inside_metadata,
    "rest": _beside("meta.pt"),
    "value": _as_a_value,
}
_LAST = "checkpoint/zero_pp_rank_1_mp_rank_00_{}_states.pt"
ZERO = {
    2: {"module": _beside("checkpoint/mp_rank_00_model_states.pt"), "optimizer": _beside(_LAST.format("optim"))},
    3: {"module": _beside(_LAST.format("model")), "optimizer": _instead(_LAST.format("optim"))},
}


def fsdp2_ranks(folder: str) -> dict[str, Any]:
    return refusals(Path(folder), fit_fsdp2, FSDP2)


def zero_ranks(folder: str) -> dict[str, Any]:
    found = {}
    for stage, spoil in ZERO.items():
        root = Path(folder) / str(stage)
        root.mkdir(exist_ok=True)
        found.update({f"{stage} {name}": result for name, result in refusals(root, fit_zero(stage), spoil).items()})
    return found


def check(found: dict[str, Any], names: Sequence[str]) -> None:
    assert {name.removesuffix(" ran") for name in found} == set(names)
    for name in names:
        said, same, any_weights = found[name]
        assert "was not loaded" in said and "posix.system" in said and "\n" not in said, said
        assert same and any_weights, name
        assert found[f"{name} ran"] is False


@needs_fsdp2
@pytest.mark.timeout(200)
def test_fsdp2(tmp_path: Path) -> None:
    """The file with the layout of tensors, the rest of a checkpoint, and values in a rank's file."""
    for found in run_ranks(__name__, "fsdp2_ranks", tmp_path, timeout=180):
        check(found, list(FSDP2))


@needs_deepspeed
@pytest.mark.timeout(400)
def test_zero(tmp_path: Path) -> None:
    """The module's file, and the last rank's file of optimizer state, which the first does not read."""
    for found in run_ranks(__name__, "zero_ranks", tmp_path, timeout=380):
        check(found, [f"{stage} {name}" for stage, spoil in ZERO.items() for name in spoil])


class Trusting(FSDP2Strategy):
    """Lightning 2.6.6 does not tell such strategies the ``weights_only`` that ``fit`` was told."""

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return super().load_checkpoint(checkpoint_path, weights_only=False)


def trusting_ranks(folder: str) -> dict[str, Any]:
    """Somebody who says so gets what Lightning does: the trap is one."""
    root = Path(folder)
    run, _ = fit_fsdp2(root)
    run.save_checkpoint(root / "good.ckpt")
    if run.global_rank == 0:
        _inside_metadata(root / "good.ckpt", Trap(root / "sprung"))
    torch.distributed.barrier()
    fit_fsdp2(root, strategy=Trusting(), ckpt_path=root / "good.ckpt")
    return {"sprung": (root / "sprung").exists(), "rank": int(os.environ["RANK"])}


@needs_fsdp2
@pytest.mark.timeout(120)
def test_whoever_trusts_a_folder_can_load_it(tmp_path: Path) -> None:
    assert all(found["sprung"] for found in run_ranks(__name__, "trusting_ranks", tmp_path))
