"""`FailTogether` in one process; on two, tests/faults."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from lightning_scale.callbacks import FailTogether
from lightning_scale.callbacks.fail_together import _follows
from tests.toys import Boom, Tally, indices, trainer


def test_one_process_needs_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^boom$"):
        trainer(tmp_path, [FailTogether(), Boom(2)], max_steps=4).fit(Tally(20), indices(20, 1))
    assert not any("watch" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("name", ["hang_seconds", "silent_seconds"])
def test_times_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        FailTogether(**{name: 0})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:42384"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("Connection closed"), False),
    ],
)
def test_which_errors_may_follow_from_another_ranks(error: Exception, expected: bool) -> None:
    assert _follows(error) is expected
