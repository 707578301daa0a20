"""Two processes: the same steps as one, and no gradient synchronization inside a window."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from lightning_scale.callbacks import GradientAccumulation, LEGWWarmup, SequenceLengthStages, Stage, TrustRatioMonitor
from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB
from lightning_scale.window import mean_gradient
from tests.distributed.launch import run_ranks
from tests.distributed.ranks import Synced, ddp_options
from tests.toys import Net, Recorder, Tally, Vectors, Weighted, indices, trainer

MODULE = __name__


def tally(folder: str) -> dict[str, Any]:
    module, synced = Tally(32), Synced()
    fit = trainer(Path(folder), [synced, GradientAccumulation(12)], max_epochs=1, **ddp_options())
    fit.fit(module, indices(32, 2))
    return {"gradients": module.gradients, "synced": synced.synced, "steps": fit.global_step}


def uneven(folder: str) -> dict[str, Any]:
    """Sample i holds i % 5 + 1 items, so ranks and micro-batches hold different numbers."""
    module = Weighted(24)
    fit = trainer(Path(folder), [GradientAccumulation(12)], max_epochs=1, **ddp_options())
    fit.fit(module, indices(24, 2))
    return {"gradients": module.gradients}


def uneven_on_devices(folder: str) -> dict[str, Any]:
    """The same, with items that stay 0-d tensors, as on an accelerator."""
    mean_gradient._on_accelerator = lambda tensor: True
    return uneven(folder)


def unequal(folder: str) -> dict[str, Any]:
    """Rank 1's own loader, which has no distributed sampler, is shorter."""
    rank = int(os.environ["LOCAL_RANK"])
    options = {**ddp_options(), "use_distributed_sampler": False}
    said = ""
    try:
        fit = trainer(Path(folder), [GradientAccumulation(8)], max_epochs=1, **options)
        fit.fit(Tally(32), indices(32 - 8 * rank, 2))
    except ConfigurationError as error:
        said = str(error)
    return {"said": said}


def two_stages(folder: str, ckpt: str | None = None, save: str | None = None) -> dict[str, Any]:
    L.seed_everything(0, verbose=False)
    module = Net(lambda m: LAMB(m.named_parameters(), lr=0.01, max_grad_norm=1.0))
    micro = 4 if ddp_options() else 8
    stages = [Stage(8, 6, 16, micro), Stage(16, 5, 8, micro, lr=0.1, warmup="40%", bias_correction_step="reset")]
    callbacks: list[L.Callback] = [LEGWWarmup(8, "2 steps"), SequenceLengthStages(stages), TrustRatioMonitor(1)]

    class Save(L.Callback):
        last = 0

        def on_train_batch_end(self, fit: L.Trainer, *args: Any) -> None:
            if save and fit.global_step == 8 and self.last != 8:  # all ranks alike: saving waits for all
                fit.save_checkpoint(save)
            self.last = fit.global_step

    logger = Recorder(Path(folder) / "logs")
    fit = trainer(Path(folder), [*callbacks, Save()], logger=logger, **ddp_options())
    fit.fit(module, Vectors(), ckpt_path=ckpt)
    return {
        "weights": [p.detach().clone() for p in module.parameters()],
        "rates": [lr for _, lr, _ in module.steps],
        "norms": [norm for _, _, norm in module.steps],
        "logged": len(logger.values("trust_ratio/net.0.weight")),
    }


def saving(folder: str) -> dict[str, Any]:
    return two_stages(folder, save=str(Path(folder) / "eight.ckpt"))


def resuming(folder: str) -> dict[str, Any]:
    return two_stages(folder, ckpt=str(Path(folder) / "eight.ckpt"))


def refused(folder: str) -> str:
    first, second = Stage(8, 2, 8, 4), Stage(16, 2, 12, 4)
    try:
        trainer(Path(folder), [SequenceLengthStages([first, second])], **ddp_options()).fit(
            Net(lambda m: LAMB(m.named_parameters())), Vectors()
        )
    except ConfigurationError as error:
        return str(error)
    return "trained"


@pytest.mark.timeout(200)
def test_a_later_stages_batch_is_checked_on_the_ranks_there_are(tmp_path: Path) -> None:
    for said in run_ranks(MODULE, "refused", tmp_path):
        assert said.startswith("stage 2: a batch of 12 samples cannot be made of micro-batches of 4 on 2 ranks")
        assert "write batch_size 8 or 16" in said


@pytest.mark.timeout(200)
def test_windows_over_two_ranks(tmp_path: Path) -> None:
    ranks = run_ranks(MODULE, "tally", tmp_path)
    # Lightning's own sampler gives rank r the samples r, r+2, ... of a shuffled pass: every sample once, in all.
    for rank in ranks:
        assert rank["steps"] == 3
        assert rank["synced"] == [False, False, True, False, False, True, False, True]
        for gradient, size in zip(rank["gradients"], (12, 12, 8), strict=True):
            assert int((gradient > 0).sum()) == size
            torch.testing.assert_close(gradient[gradient > 0], torch.full((size,), 1 / size))
    torch.testing.assert_close(
        sum(g * n for g, n in zip(ranks[0]["gradients"], (12, 12, 8), strict=True)), torch.ones(32)
    )
    for ours, theirs in zip(ranks[0]["gradients"], ranks[1]["gradients"], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("items", ["uneven", "uneven_on_devices"])
def test_uneven_items_over_two_ranks_are_one_mean(items: str, tmp_path: Path) -> None:
    first, second = run_ranks(MODULE, items, tmp_path)
    items = torch.arange(24) % 5 + 1.0
    for gradient, same in zip(first["gradients"], second["gradients"], strict=True):
        assert torch.equal(gradient, same)
        mine = gradient > 0
        assert int(mine.sum()) == 12
        torch.testing.assert_close(gradient[mine], items[mine] / items[mine].sum(), rtol=4e-7, atol=0)


@pytest.mark.timeout(200)
def test_a_rank_that_would_run_out_of_data_is_named_on_all_ranks(tmp_path: Path) -> None:
    for result in run_ranks(MODULE, "unequal", tmp_path):
        assert result["said"].startswith(
            "rank 1 would run out of data: its training loader gives 12 micro-batches in an epoch,"
        )
        assert "rank 0's 16, which would wait for it" in result["said"]


@pytest.mark.timeout(300)
def test_stages_on_two_ranks_are_those_of_one_and_resume(tmp_path: Path) -> None:
    one = two_stages(str(tmp_path))
    first, second = run_ranks(MODULE, "saving", tmp_path)
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first["weights"], one["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    assert first["rates"] == one["rates"]
    assert first["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert (first["logged"], second["logged"]) == (11, 0)  # written by one rank

    resumed, _ = run_ranks(MODULE, "resuming", tmp_path)
    assert resumed["rates"] == first["rates"][8:]
    for a, b in zip(resumed["weights"], first["weights"], strict=True):
        assert torch.equal(a, b)
