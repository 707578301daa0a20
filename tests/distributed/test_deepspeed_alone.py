"""The comparison's DeepSpeed run: the same samples and weights, one ratio for each rank's slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import yaml
from torch.nn import functional as F

from examples.bert.data import TextData
from examples.bert.masking import IGNORED
from examples.bert.model import BertPretraining
from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.optim import LAMB
from tests.distributed.launch import run_ranks
from tests.distributed.zero_runs import needs_deepspeed
from tests.toys import trainer

pytestmark = [needs_deepspeed, pytest.mark.timeout(400)]

_STEPS = 3
_CONFIG = Path(__file__).parents[2] / "examples/comparisons/configs/zero.yaml"


def _config(folder: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(_CONFIG.read_text())
    config["data"]["init_args"]["cache_dir"] = f"{folder}/text"
    config["data"]["init_args"]["vocab_size"] = 256
    return config


def alone(folder: str) -> list[tuple[float, float | None, float | None]]:
    import deepspeed

    from examples.comparisons.deepspeed_alone import train
    from lightning_scale.strategies.zero.deepspeed_internals import nothing_compiled

    with nothing_compiled():
        deepspeed.init_distributed("gloo", verbose=False)
    record = train(_config(folder), seed=1, steps=_STEPS)
    assert record.validations[0].val_loss > 0
    return [(row.train_loss, row.trust_ratio_min, row.trust_ratio_max) for row in record.steps]


class _Pretraining(BertPretraining):
    def configure_optimizers(self) -> Any:
        return LAMB(self.named_parameters(), lr=7e-3, weight_decay=0.01)


class _Losses(L.Callback):
    def __init__(self) -> None:
        self.of_steps: list[list[float]] = [[]]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.of_steps[-1].append(float(outputs["loss"]))
        if trainer.global_step == len(self.of_steps):
            self.of_steps.append([])


def test_it_sees_the_same_and_steps_otherwise(tmp_path: Path) -> None:
    config = _config(str(tmp_path))
    data = TextData(**config["data"]["init_args"], seed=1)
    data.prepare_data()
    losses = _Losses()
    L.seed_everything(1)
    fit = trainer(
        tmp_path, [GradientAccumulation(64, last_window="drop"), losses], max_steps=_STEPS, limit_val_batches=0
    )
    module = _Pretraining()
    fit.fit(module, data)
    ours = [sum(step) / len(step) for step in losses.of_steps[:_STEPS]]

    ranks = run_ranks(__name__, "alone", tmp_path, timeout=300)
    assert ranks[0] == ranks[1]
    theirs = [loss for loss, _, _ in ranks[0]]
    assert theirs[0] == pytest.approx(ours[0], rel=1e-6)  # the same weights, samples and masks
    assert abs(theirs[2] - ours[2]) > 1e-4  # another step
    least, most = ranks[0][0][1:]
    assert least is not None and most is not None and least < most  # a ratio of each rank's own
    true = {
        float(stats.trust_ratio)
        for name, stats in fit.optimizers[0].layer_stats().items()
        if fit.optimizers[0].layer_rules()[name].adapts
    }
    assert len(true) > 2


def test_the_loss_is_the_modules(tmp_path: Path) -> None:
    """Plain cross-entropy in `deepspeed_alone`, the module's own otherwise: one mean over the hidden tokens."""
    logits, targets = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
    module = BertPretraining(vocab_size=7)
    module.network = lambda ids, positions: logits  # type: ignore[assignment]
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    batch = {"input_ids": torch.zeros(4, 8), "positions": torch.zeros(4, 5), "targets": targets}
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert float(module.training_step(batch, 0)["loss"]) == pytest.approx(float(expected))
