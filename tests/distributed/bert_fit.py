"""A small BERT trained for a few steps under a strategy, for comparing strategies."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from examples.bert import BertPretraining, TextData
from lightning_scale.callbacks import ExactResume, SequenceLengthStages, Stage
from lightning_scale.optim import LAMB
from tests.toys import trainer

_LENGTHS = (13, 24)
_WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "many", "words", "make", "one"]


def write_text(path: Path) -> None:
    """60 documents of 20 to 120 words."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(20, 120))) + "." for _ in range(60)]
    path.write_text("\n\n".join(texts))


class Small(BertPretraining):
    """With LAMB and a clip."""

    def configure_optimizers(self) -> Any:
        return LAMB(self.named_parameters(), weight_decay=0.01, max_grad_norm=1.0)


class Record(L.Callback):
    """The loss of every micro-batch, weighted as it counts, and each step's trust ratios."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ratios: list[dict[str, float]] = []
        self.skipped = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        optimizer = trainer.optimizers[0]
        self.skipped = int(getattr(optimizer, "optimizer", optimizer).skipped_steps)
        self.ratios.append(
            {k: float(v.trust_ratio) for k, v in getattr(optimizer, "optimizer", optimizer).layer_stats().items()}
        )


def fit(
    folder: Path,
    strategy: Any,
    ranks: int,
    ckpt_path: str | None = None,
    steps: int = 3,
    extra: Any = (),
    **options: Any,
) -> Record:
    """Two stages of ``steps`` steps; batches of 16 in four micro-batches over all ranks."""
    stages = [
        Stage(_LENGTHS[0], steps=steps, batch_size=16, micro_batch_size=4 // ranks, lr=0.02),
        Stage(_LENGTHS[1], steps=steps, batch_size=16, micro_batch_size=4 // ranks, lr=0.01),
    ]
    L.seed_everything(0)
    data = TextData([str(folder / "text.txt")], vocab_size=128, cache_dir=str(folder / "cache"))
    record = Record()
    run = trainer(
        folder, [SequenceLengthStages(stages), ExactResume(), record, *extra],
        devices=ranks, strategy=strategy, limit_val_batches=0, **options,
    )  # fmt: skip
    run.fit(Small(layers=2, width=16, heads=2, max_positions=32), data, ckpt_path=ckpt_path)
    return record
