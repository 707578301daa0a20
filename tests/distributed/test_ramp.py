"""Two ranks: every optimizer step is the mean gradient of exactly the samples that the schedule says, on both."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation
from lightning_scale.schedule import Split, StepSchedule
from tests.distributed.launch import run_ranks
from tests.distributed.ranks import Synced, ddp_options
from tests.toys import Tally, Weighted, indices, trainer
from tests.window.batches import check, exact_batches, resumable, rounded_batches

RANKS = 2
FLOAT32 = 1e-6
"""Relative: weighing, adding, dividing and the exchange round once each, by 6e-8 at most; uneven items add a few more."""


@dataclass(frozen=True)
class Case:
    """One run: a schedule, and the data that it is run on."""

    schedule: StepSchedule
    size: int
    micro: int
    epochs: int
    last_window: Literal["step", "drop"]
    workers: int = 0


def drawn(seed: int, least: int) -> list[Case]:
    """Eight runs: up to four sizes of ``least`` micro-batches or more samples, up and down, changing after any sample."""
    draw = random.Random(seed)
    cases = []
    for number in range(8):
        micro = draw.randint(2, 5)
        smallest = max(RANKS, least * micro)
        points = [0, *sorted(draw.sample(range(1, 90), draw.randint(1, 3)))]
        schedule = StepSchedule(" ".join(f"{p}:{draw.randint(smallest, smallest + 13)}" for p in points))
        last_window: Literal["step", "drop"] = "drop" if number % 2 else "step"
        cases.append(Case(schedule, draw.randint(29, 47), micro, draw.randint(2, 3), last_window))
    return cases


def exact_cases() -> list[Case]:
    """For a ResumableBatchSampler, which can give any size; one more with worker processes."""
    return [*drawn(1, 0), Case(StepSchedule("0:5 7:11 31:3 50:17"), 41, 4, 3, "step", workers=2)]


def plain_cases() -> list[Case]:
    """For a plain DataLoader, whose sizes are rounded; the least is one micro-batch of each rank."""
    return [*drawn(2, RANKS), Case(StepSchedule("0:10 30:7 44:17"), 41, 3, 3, "step", workers=2)]


class Reductions(L.Callback):
    """Counts the exchanges of gradients that take place (the model has one parameter, so one for each)."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, fit: L.Trainer, *args: Any) -> None:
        fit.model.register_comm_hook(None, lambda _, bucket: self._exchange(bucket))  # type: ignore[union-attr, operator]

    def _exchange(self, bucket: GradBucket) -> Any:
        self.count += 1
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]


def fit(folder: str, module: Tally, callbacks: list[L.Callback], loader: Any, **options: Any) -> dict[str, Any]:
    synced, reductions = Synced(), Reductions()
    run = trainer(Path(folder), [synced, reductions, *callbacks], **ddp_options(), **options)
    run.fit(module, loader)
    return {"gradients": module.gradients, "synced": synced.synced, "reductions": reductions.count}


def ramp(folder: str, case: Case, module: Tally, loader: Any, **options: Any) -> dict[str, Any]:
    callback = BatchSizeRamp(case.schedule, last_window=case.last_window)
    return fit(folder, module, [callback], loader, max_epochs=case.epochs, **options)


def shared_out(case: Case) -> DataLoader[Any]:
    """A plain loader that the user has given a DistributedSampler: rank r has r, r + 2, ..."""
    sampler: DistributedSampler[Any] = DistributedSampler(range(case.size), shuffle=False)  # type: ignore[arg-type]
    return indices(case.size, case.micro, sampler=sampler)


class Uneven(Sampler[list[int]]):
    """Micro-batches of one to four samples, of other sizes on each rank, as a sampler by length may give."""

    batch_size = 4

    def __iter__(self) -> Iterator[list[int]]:
        return iter(UNEVEN[torch.distributed.get_rank()])

    def __len__(self) -> int:
        return len(UNEVEN[0])


UNEVEN = ([[0, 1, 2, 3], [4], [5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14], [15], [16, 17, 18, 19]])


def uneven_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(20)), batch_sampler=Uneven())


class Shares(Uneven):
    """25 samples, 13 of them on the first rank: micro-batches of 5, 5 and 3, and of 5, 5 and 2."""

    batch_size = 5

    def __iter__(self) -> Iterator[list[int]]:
        share = list(range(torch.distributed.get_rank(), 25, RANKS))
        return iter([share[:5], share[5:10], share[10:]])

    def __len__(self) -> int:
        return 3


def consumed(folder: str) -> float:
    """Samples that a rank counts in one epoch of `Shares`."""
    run = trainer(Path(folder), [BatchSizeRamp("0:10")], max_epochs=1, use_distributed_sampler=False, **ddp_options())
    run.fit(Tally(25), DataLoader(TensorDataset(torch.arange(25)), batch_sampler=Shares()))
    return float(run.callback_metrics["samples_consumed"])


def everything(folder: str) -> dict[str, Any]:
    """All runs of this file, in one process group."""
    results: dict[str, Any] = {}
    results["exact"] = [
        ramp(folder, case, Tally(case.size), resumable(case.size, case.micro, case.workers)) for case in exact_cases()
    ]
    results["items"] = [
        ramp(folder, case, Weighted(case.size), resumable(case.size, case.micro)) for case in exact_cases()
    ]
    results["shared out"] = [ramp(folder, case, Weighted(case.size), shared_out(case)) for case in plain_cases()]
    results["shuffled"] = [
        ramp(folder, case, Weighted(case.size), indices(case.size, case.micro, num_workers=case.workers))
        for case in plain_cases()
    ]
    results["both the same"] = [
        ramp(folder, case, Tally(case.size), indices(case.size, case.micro), use_distributed_sampler=False)
        for case in plain_cases()
    ]
    results["uneven"] = {
        kind.__name__: fit(
            folder, kind(20), [GradientAccumulation(16)], uneven_loader(), max_epochs=1, use_distributed_sampler=False
        )
        for kind in (Tally, Weighted)
    }
    results["consumed"] = consumed(folder)
    for name, accumulate in (("ours", 1), ("lightning's", 3)):
        callbacks: list[L.Callback] = [GradientAccumulation(12)] if name == "ours" else []
        options: dict[str, Any] = {"accumulate_grad_batches": accumulate, "use_distributed_sampler": False}
        results[name] = {
            f"{kind.__name__} {size}": fit(folder, kind(size), callbacks, resumable(size, 2), max_epochs=1, **options)
            for kind in (Tally, Weighted)
            for size in (24, 32)
        }
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(__name__, "everything", tmp_path_factory.mktemp("ranks"))


pytestmark = pytest.mark.timeout(200)


def items(size: int) -> Tensor:
    return torch.arange(size) % 5 + 1.0


def check_ranks(runs: list[dict[str, Any]], steps: list[list[int]], counts: Tensor) -> None:
    """Both ranks have the bits of one gradient, the mean over exactly the step's samples, exchanged once."""
    for run in runs:
        check(run["gradients"], steps, counts, rtol=FLOAT32)
        assert run["reductions"] == sum(run["synced"]) == len(steps)
    for one, other in zip(*(run["gradients"] for run in runs), strict=True):
        assert torch.equal(one, other)


def synced_at_ends(micro_batches: list[int]) -> list[bool]:
    """What windows of so many micro-batches give: an exchange in the last of each."""
    return [micro_batch == count - 1 for count in micro_batches for micro_batch in range(count)]


@pytest.mark.parametrize("number", range(len(exact_cases())))
@pytest.mark.parametrize(("kind", "counts"), [("exact", torch.ones), ("items", items)])
def test_a_resumable_loader_gives_every_size_exactly(
    ranks: list[dict[str, Any]], kind: str, counts: Callable[[int], Tensor], number: int
) -> None:
    case = exact_cases()[number]
    runs = [rank[kind][number] for rank in ranks]
    steps = exact_batches(case.schedule, case.size, case.epochs, case.last_window, RANKS)
    check_ranks(runs, steps, counts(case.size))
    splits = [Split.of(len(step), case.micro, RANKS) for step in steps]
    for run in runs:
        assert run["synced"] == synced_at_ends([split.micro_batches for split in splits if split is not None])


def test_the_runs_are_what_they_should_be() -> None:
    """Else the tests above could pass for want of hard cases."""
    cut = odd = uneven = moved = 0
    for case in exact_cases():
        steps = exact_batches(case.schedule, case.size, case.epochs, case.last_window, RANKS)
        sizes = [size for _, size in case.schedule.changes()]
        cut += any(len(step) not in sizes for step in steps)
        odd += sum(len(step) % 2 for step in steps)
        splits = [Split.of(len(step), case.micro, RANKS) for step in steps]
        uneven += sum(split is not None and split.size(split.micro_batches - 1, 0) < case.micro for split in splits)
        moved += any(0 in step[1:] for step in steps)
    assert cut >= 3  # runs in which an epoch's end cuts a batch
    assert odd >= 10  # batches of which one rank has a sample more
    assert uneven >= 10  # batches with smaller micro-batches
    assert moved >= 2  # runs in which a batch takes samples of two passes


def rounded(case: Case, order: Callable[[int], list[int]]) -> list[list[int]]:
    """Indices of every step where all ranks together take ``order(epoch)``, a micro-batch of each at a time."""
    steps, epoch = [], -1
    held = rounded_batches(case.schedule, len(order(0)), RANKS * case.micro, case.epochs, case.last_window)
    for positions in held:
        epoch += positions[0] == 0
        steps.append([order(epoch)[position] for position in positions])
    assert epoch == case.epochs - 1
    return steps


def padded(order: list[int]) -> list[int]:
    """As distributed samplers do: every rank has as many."""
    return order + order[: len(order) % RANKS]


def shuffled(case: Case, epoch: int) -> list[int]:
    """What Lightning's own sampler gives both ranks, in turn."""
    shares = []
    for rank in range(RANKS):
        sampler: DistributedSampler[Any] = DistributedSampler(range(case.size), RANKS, rank)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
    return [index for pair in zip(*shares, strict=True) for index in pair]


@pytest.mark.parametrize("number", range(len(plain_cases())))
def test_a_plain_loader_gives_the_nearest_multiple(ranks: list[dict[str, Any]], number: int) -> None:
    """The user's distributed sampler; Lightning's; and none, where both ranks take the same samples."""
    case = plain_cases()[number]
    orders: dict[str, tuple[Callable[[int], list[int]], Tensor]] = {
        "shared out": (lambda epoch: padded(list(range(case.size))), items(case.size)),
        "shuffled": (lambda epoch: shuffled(case, epoch), items(case.size)),
        "both the same": (lambda epoch: [i for i in range(case.size) for _ in range(RANKS)], torch.ones(case.size)),
    }
    for kind, (order, counts) in orders.items():
        steps = rounded(case, order)
        runs = [rank[kind][number] for rank in ranks]
        check_ranks(runs, steps, counts)
        if case.last_window == "step":
            taken = [-(-len(step) // (RANKS * case.micro)) for step in steps]
            assert all(run["synced"] == synced_at_ends(taken) for run in runs), kind
    assert shuffled(case, 0) != shuffled(case, 1)


@pytest.mark.parametrize(("kind", "counts"), [("Tally", torch.ones(20)), ("Weighted", items(20))])
def test_ranks_may_hold_different_numbers(ranks: list[dict[str, Any]], kind: str, counts: Tensor) -> None:
    """Of samples and of items, in every micro-batch."""
    steps = [[i for share in UNEVEN for part in share[first : first + 2] for i in part] for first in (0, 2)]
    runs = [rank["uneven"][kind] for rank in ranks]
    check_ranks(runs, steps, counts)
    assert all(run["synced"] == [False, True, False, True] for run in runs)


def test_ranks_with_different_numbers_count_the_same_samples(ranks: list[dict[str, Any]]) -> None:
    """Else a schedule's next size begins on one rank and not on the other, which hangs or mixes up windows."""
    assert [rank["consumed"] for rank in ranks] == [25, 25]


def test_lightnings_own_accumulation_fails_this_test(ranks: list[dict[str, Any]]) -> None:
    """Windows of 12 samples, and 8 left of 32; its mean of means is right only where all are of one size."""
    outcomes: dict[str, dict[str, bool]] = {}
    for name in ("ours", "lightning's"):
        for run in ("Tally 24", "Tally 32", "Weighted 24", "Weighted 32"):
            kind, size = run.split()
            counts = items(int(size)) if kind == "Weighted" else torch.ones(int(size))
            steps = exact_batches(StepSchedule("0:12"), int(size), 1, "step", RANKS)
            try:
                check_ranks([rank[name][run] for rank in ranks], steps, counts)
            except AssertionError:
                outcomes.setdefault(run, {})[name] = False
            else:
                outcomes.setdefault(run, {})[name] = True
    assert all(outcome["ours"] for outcome in outcomes.values())
    assert {run: outcome["lightning's"] for run, outcome in outcomes.items()} == {
        "Tally 24": True,
        "Tally 32": False,
        "Weighted 24": False,
        "Weighted 32": False,
    }
