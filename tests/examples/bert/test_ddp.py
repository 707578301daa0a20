"""Two ranks train and validate on the same samples as one, and report the same run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest

from examples.bert import BertPretraining, RunReport, TextData
from lightning_scale.callbacks import SequenceLengthStages, Stage
from lightning_scale.optim import LAMB
from tests.distributed.launch import run_ranks
from tests.toys import trainer

_LENGTHS = (13, 24)


class Small(BertPretraining):
    def configure_optimizers(self) -> Any:
        return LAMB(self.named_parameters())


def fit(folder: str, ranks: int = 2) -> dict[str, Any]:
    """Fit both stages; the report's state."""
    stages = [
        Stage(_LENGTHS[0], steps=2, batch_size=16, micro_batch_size=8 // ranks, lr=0.02),
        Stage(_LENGTHS[1], steps=2, batch_size=16, micro_batch_size=8 // ranks, lr=0.01),
    ]
    L.seed_everything(0)
    data = TextData([f"{folder}/text.txt"], vocab_size=128, cache_dir=f"{folder}/cache{ranks}")
    report = RunReport(f"{folder}/report{ranks}", trust_ratio_every=1)
    run = trainer(
        Path(folder),
        [SequenceLengthStages(stages), report],
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        val_check_interval=2,  # micro-batches
        check_val_every_n_epoch=None,
    )
    run.fit(Small(layers=1, width=16, heads=2, max_positions=32), data)
    return report.state_dict()


def test_two_ranks_are_one(text_file: Path, tmp_path: Path, text_data: Callable[..., TextData]) -> None:
    shutil.copy(text_file, tmp_path / "text.txt")
    alone = fit(str(tmp_path), ranks=1)
    first, second = run_ranks(__name__, "fit", tmp_path)
    held_out = [len(text_data(sequence_length=length).val_dataloader().dataset) for length in _LENGTHS]
    assert any(count % 2 for count in held_out)  # a stage in which one rank has a sample more than the other
    for kind in ("steps", "validations"):
        for column, values in alone[kind].items():
            assert first[kind][column] == pytest.approx(values, rel=1e-4), (kind, column)
    assert alone["validations"]["step"] == [1, 2, 3, 4]
    assert second["steps"]["step"] == []  # rank zero alone keeps the record
    assert (tmp_path / "report2" / "report.png").exists()
