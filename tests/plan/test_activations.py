"""The largest micro-batch is the largest, and what cannot be traced is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_scale.callbacks import GradientAccumulation, SequenceLengthStages, Stage
from lightning_scale.plan.activation_trace import Computing, peak_bytes
from lightning_scale.plan.activations import (
    Activations,
    Measured,
    activations_text,
    computing_of,
    largest_micro_batches,
    measure,
    micro_batches_too_large,
)
from lightning_scale.plan.configuration import Configured, Machine
from lightning_scale.plan.dry_run import DryRun, dry_run
from lightning_scale.plan.memory import by_strategy, shapes_of
from lightning_scale.plan.micro_batch import BatchShapes, Unknown, read
from lightning_scale.plan.placeholder_data import placeholder_for
from tests.plan.activation_models import Bert, allocated
from tests.toys import Vectors, trainer

CPU = Configured("ddp", "32-true", gpu=False)


class Loaded(L.LightningDataModule):
    """A model's own data."""

    def __init__(self, micro_batch_size: int = 8) -> None:
        super().__init__()
        self.micro_batch_size = micro_batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Bert.data, batch_size=self.micro_batch_size)


def dry_run_of(make: Any, data: Any, callbacks: Any = (), **options: Any) -> DryRun:
    with torch.device("meta"):
        model = make()
    return dry_run(model, data, list(callbacks), {"max_steps": 2, **options}, 1, read_samples=True)


def test_a_run_takes_what_was_planned(tmp_path: Path) -> None:
    """States and activations together, of a run by Lightning: its second micro-batch finds gradients of the first."""
    found = dry_run_of(Bert, Loaded(16), [GradientAccumulation(32)])
    (held,) = measure(found, Configured(None, "32-true", gpu=False)).by_computing[Computing()]
    states = by_strategy(shapes_of(found.model, found.optimizers[0]), found.optimizers[0], CPU, Machine(1, 1))["ddp"]

    def train() -> None:
        fit = trainer(tmp_path, [], max_steps=3, accumulate_grad_batches=2)
        fit.fit(Bert(), datamodule=Loaded(16))

    assert allocated(train) == pytest.approx(states.device.total + held.bytes, rel=0.005)


def test_the_largest_micro_batch_is_the_largest() -> None:
    found = dry_run_of(Bert, Loaded(8))
    (held,) = measure(found, Configured(None, "bf16-mixed", gpu=False)).by_computing[Computing(autocast=torch.bfloat16)]
    shapes = found.inputs[0].batch
    assert isinstance(shapes, BatchShapes) and held.off < 0.01
    for room in (3 * held.bytes // 2, 40 * held.bytes):
        largest = held.largest(room)
        assert peak_bytes(found.model, shapes, largest, held.computing) <= room
        assert peak_bytes(found.model, shapes, largest + 1, held.computing) > room


def test_what_was_traced_is_never_denied() -> None:
    """Where memory is no line over samples, a micro-batch that was traced fits or does not, whatever the line says."""
    held = Activations(None, None, 8, Computing(), bytes=900, fixed=0, per_sample=100, off=0.1)
    assert (held.largest(899), held.largest(900), held.largest(1000), held.largest(799)) == (7, 9, 10, 7)
    assert Activations(None, None, 8, Computing(), 900, 200, 100, 0.1).largest(950) == 8
    assert Activations(None, None, 8, Computing(), 900, 200, 100, 0.1).largest(100) == 0


@pytest.mark.parametrize(
    ("strategy", "precision", "expected"),
    [
        ("ddp", "32-true", Computing()),
        ("ddp", "bf16-mixed", Computing(autocast=torch.bfloat16)),
        ("fsdp2", "bf16-true", Computing(torch.bfloat16)),
        ("zero2", "bf16-mixed", Computing(torch.bfloat16)),
        ("zero3_offload", "32-true", Computing()),
        ("ddp", "16-mixed", Computing(autocast=torch.float16)),
        ("ddp", "64-true", Computing(torch.float64)),
    ],
)
def test_how_strategies_compute(strategy: str, precision: str, expected: Computing) -> None:
    assert computing_of(strategy, Configured(None, precision, gpu=False)) == expected


class Staged(Loaded):
    """Samples as long as the stage says, without a file."""

    length = 0

    def set_stage(self, stage: Any) -> None:
        self.length = stage.sequence_length

    def train_dataloader(self) -> DataLoader[Any]:
        raise AssertionError("nobody may open this")

    def example_sample(self) -> tuple[Tensor, Tensor, Tensor]:
        places = torch.zeros(4, dtype=torch.int64)
        return torch.zeros(self.length, dtype=torch.int64), places, places


def test_stages_and_data_that_is_not_there() -> None:
    stages = SequenceLengthStages([Stage(12, 2, 16, 8, lr=0.1), Stage(48, 2, 8, 2, lr=0.1)])
    found = dry_run_of(Bert, placeholder_for(Staged(), 1000, None), [stages], max_steps=-1)
    measured = measure(found, Configured(None, "32-true", gpu=False))
    short, long = measured.by_computing[Computing()]
    assert (short.stage, short.sequence_length, short.micro_batch_size) == (1, 12, 8)
    assert (long.stage, long.sequence_length, long.micro_batch_size) == (2, 48, 2)
    assert 3 < long.per_sample / short.per_sample < 5
    own = by_strategy(shapes_of(found.model, found.optimizers[0]), found.optimizers[0], CPU, Machine(1, 1))
    states = own["ddp"].device.total
    fits = largest_micro_batches(own, measured, CPU, states + long.bytes)
    assert [one["fits"] for one in fits["ddp"]] == [short.bytes <= long.bytes, True]
    device = states + min(short.bytes, long.bytes) - 1
    assert len(micro_batches_too_large(own, measured, CPU, device)) == 2
    (first, second) = micro_batches_too_large(own, measured, CPU, device)
    assert "micro-batch of stage 1 does not fit" in first and "the largest is 7" in first and "stage 2" in second
    text = activations_text(own, measured, CPU, device)
    assert "> ddp  7 (less than asked for)  1 (less than asked for)" in text
    assert (
        micro_batches_too_large(own, measured, CPU, states - 1) == []
    )  # the model itself does not fit: that is said instead


class Looks(Bert):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        out = super().training_step(batch, batch_idx)
        return out if out["loss"].item() < 100 else None


class Fails(Bert):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        raise KeyError("no such column")


class NotHere(Loaded):
    def train_dataloader(self) -> DataLoader[Any]:
        class Missing(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return 100

            def __getitem__(self, index: int) -> Any:
                raise FileNotFoundError("train.bin")

        return DataLoader(Missing(), batch_size=8)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (Looks, Loaded, "training_step looks into its tensors"),
        (Fails, Loaded, "KeyError: 'no such column'"),
        (Bert, NotHere, "no sample could be read (FileNotFoundError: train.bin)"),
        (Bert, lambda: placeholder_for(Vectors(8), 100, None), "has no example_sample()"),
    ],
)
def test_why_they_are_left_out(model: Any, data: Any, words: str) -> None:
    measured = measure(dry_run_of(model, data()), Configured(None, "32-true", gpu=False))
    assert measured.left_out is not None and words in measured.left_out
    assert measured.by_computing == {} and largest_micro_batches({}, measured, CPU, 10**9) == {}
    text = activations_text({}, measured, CPU, 10**9)
    assert text.startswith("Left out: ") and words in text


def test_a_precision_of_its_own_kind() -> None:
    measured = measure(dry_run_of(Bert, Loaded()), Configured(None, "transformer-engine", gpu=True))
    assert measured.left_out == "what precision 'transformer-engine' computes in is not known here"


def test_memory_that_is_no_line_is_called_so() -> None:
    held = Activations(None, None, 8, Computing(), bytes=900, fixed=0, per_sample=100, off=0.11)
    text = activations_text({}, Measured({Computing(): [held]}), CPU, None)
    assert "does not grow evenly with samples (a line misses it by 11%)" in text


# -- micro-batches -----------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    image: Any
    label: Any


def test_a_micro_batch_of_any_size() -> None:
    samples = [
        {"ids": torch.zeros(6, dtype=torch.int64), "pair": Pair(torch.zeros(3, 4), i), "name": "x"} for i in range(4)
    ]
    shapes = read([DataLoader(samples, batch_size=2)])  # type: ignore[arg-type]
    assert isinstance(shapes, BatchShapes)
    batch = shapes.of(9, torch.bfloat16)
    assert batch["ids"].shape == (9, 6) and batch["ids"].dtype == torch.int64
    assert isinstance(batch["pair"], Pair) and batch["pair"].image.shape == (9, 3, 4)
    assert batch["pair"].image.dtype == torch.bfloat16 and batch["pair"].label.shape == (9,)
    assert batch["name"] == ["x"] * 9


def test_the_longest_of_several_samples_stands_for_all() -> None:
    samples = [np.zeros(length) for length in (3, 7, 5)]

    def pad(items: list[Any]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(item) for item in items])  # [length, samples]

    shapes = read([DataLoader(samples, batch_size=2, collate_fn=pad)])  # type: ignore[arg-type]
    assert isinstance(shapes, BatchShapes) and shapes.of(10).shape == (7, 10)


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(5)


def test_data_that_is_only_iterated() -> None:
    shapes = read([DataLoader(Endless(), batch_size=2)])
    assert isinstance(shapes, BatchShapes) and shapes.of(4).shape == (4, 5)


@pytest.mark.parametrize(
    ("loaders", "words"),
    [
        ([DataLoader(Bert.data, batch_size=None)], "does not make micro-batches of single samples"),
        ([DataLoader(Bert.data), DataLoader(Bert.data)], "there are 2 training loaders"),
        ([DataLoader(Bert.data, collate_fn=lambda items: torch.zeros(3))], "no tensor of a micro-batch grows"),
    ],
)
def test_micro_batches_that_cannot_be_made(loaders: Any, words: str) -> None:
    found = read(loaders)
    assert isinstance(found, Unknown) and words in str(found)
