"""The two-stage example, killed in each stage and started anew by its command: the bits of the uninterrupted run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import yaml

from tests.launch.demo import ended, logs, start_forked

_ROOT = Path(__file__).parents[3]
_STEPS, _MICRO_BATCHES = (6, 5), 2  # of each stage, and in each step


class Kill(L.Callback):
    """Ends the process in the run's micro-batch number ``micro_batch``, from 0 on, without a word."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.micro_batch:
            os.kill(os.getpid(), signal.SIGKILL)


def _config(folder: Path, kill: int | None) -> Path:
    """two_stage.yaml with two short stages, dropout, and a checkpoint after every step."""
    config: dict[str, Any] = yaml.safe_load((_ROOT / "examples" / "bert" / "two_stage.yaml").read_text())
    trainer = config["trainer"]
    for callback in trainer["callbacks"]:
        options = callback.get("init_args", {}) if isinstance(callback, dict) else {}
        if "base_warmup" in options:
            options.update(base_batch_size=4, base_warmup="3 steps")
        if "interval" in options:
            options["interval"] = "3 steps"
        if "every_n_steps" in options:
            options["picture"] = False  # it takes longer than the training
        if "dir" in options:
            options["dir"] = str(folder)
        for stage, steps, length, batch in zip(options.get("stages", []), _STEPS, (16, 32), (16, 4), strict=False):
            stage.update(
                steps=steps, sequence_length=length, batch_size=batch, micro_batch_size=batch // _MICRO_BATCHES
            )
    trainer["logger"]["init_args"]["save_dir"] = str(folder)
    trainer["limit_val_batches"] = 1
    checkpoints = {"dirpath": str(folder / "checkpoints"), "every_n_train_steps": 1, "save_last": True}
    trainer["callbacks"].append({"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoints})
    if kill is not None:
        trainer["callbacks"].append({"class_path": f"{__name__}.Kill", "init_args": {"micro_batch": kill}})
    config["model"]["init_args"].update(layers=1, width=16, heads=2, dropout=0.3)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def _fit(folder: Path, text: Path, cache_dir: Path, *more: str, kill: int | None = None) -> int:
    """The exit status of ``lightning-scale fit``."""
    folder.mkdir(exist_ok=True)
    command = [
        *("lightning-scale", "fit"),
        f"--config={_config(folder, kill)}",
        f"--data.files=[{text}]",
        "--data.vocab_size=128",
        f"--data.cache_dir={cache_dir}",
        *more,
    ]
    process = start_forked(command, folder, "all.log")
    (status,) = ended([process], 100)
    assert status in (0, -signal.SIGKILL), logs(folder)
    return status


def _last(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


@pytest.mark.timeout(300)
def test_killed_in_both_stages(tmp_path: Path, text_file: Path, cache_dir: Path) -> None:
    """Inside step 3 of stage 1, then inside step 3 of stage 2: 2 and 8 steps are kept."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _fit(whole, text_file, cache_dir) == 0
    resume = f"--ckpt_path={killed / 'checkpoints' / 'last.ckpt'}"
    # A resumed run has another seed: what it draws must come from the checkpoint.
    for number, (kill, kept) in enumerate(((5, 2), (17, 8))):
        more = [resume, f"--seed_everything={number}"] if number else []
        assert _fit(killed, text_file, cache_dir, *more, kill=kill) == -signal.SIGKILL
        assert _last(killed)["global_step"] == kept
    assert _fit(killed, text_file, cache_dir, resume, "--seed_everything=9") == 0

    mine, theirs = _last(killed), _last(whole)
    assert mine["global_step"] == theirs["global_step"] == sum(_STEPS)
    assert mine["state_dict"].keys() == theirs["state_dict"].keys() != set()
    for name, weight in theirs["state_dict"].items():
        assert torch.equal(mine["state_dict"][name], weight), name
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (mine, theirs)]
    assert states[0].keys() == states[1].keys() != set()
    for key, state in states[0].items():
        assert all(torch.equal(torch.as_tensor(state[name]), torch.as_tensor(states[1][key][name])) for name in state)
