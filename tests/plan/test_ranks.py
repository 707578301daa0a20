"""Two ranks that are here take the steps that were planned for two ranks that are not."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_scale.plan.dry_run import dry_run
from tests.distributed.launch import run_ranks
from tests.plan.ranks_runs import NAMES
from tests.plan.test_dry_run import CASES, Seen
from tests.toys import Net


def test_two_ranks_do_what_was_planned(tmp_path: Path) -> None:
    first, second = run_ranks("tests.plan.ranks_runs", "fits", tmp_path)
    for name in NAMES:
        data, callbacks, configure, options = CASES[name]
        with torch.device("meta"):
            planned = dry_run(Net(configure), data(), callbacks(), options, world_size=2).schedule.steps
        assert len(planned) == len(first[name]) == len(second[name]) > 3
        for step, a, b in zip(planned, map(Seen._make, first[name]), map(Seen._make, second[name]), strict=True):
            assert (step.step, step.lr, step.micro_batches, step.epoch) == (a.step, a.lr, a.micro_batches, a.epoch), (
                name
            )
            assert (step.lr, step.sequence_length) == (b.lr, b.sequence_length), name
            assert step.batch_size == a.batch_size + b.batch_size, name
            assert step.micro_batch_size == max(a.micro_batch_size, b.micro_batch_size), name
            assert step.samples == a.samples + b.samples, name
