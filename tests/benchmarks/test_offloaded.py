"""An offloaded step is that of whole layers, and what cannot be compiled is a reason."""

from __future__ import annotations

from math import prod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import offloaded
from benchmarks.contestants.contestant import NotAvailable
from benchmarks.equations.hyper import BETAS, EPS, WEIGHT_DECAY
from benchmarks.parameter_sets import SETS
from lightning_scale.optim import LAMB

SHAPES = SETS["tiny"]


def cannot_be_compiled(name: str) -> Any:
    def adam(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no g++\n here")

    return SimpleNamespace(DeepSpeedCPUAdam=adam)


def test_a_step_of_a_flat_tensor_is_that_of_its_layers() -> None:
    flat = nn.Parameter(torch.randn(sum(map(prod, SHAPES))))
    flat.grad = torch.randn_like(flat)
    pieces = flat.detach().split(list(map(prod, SHAPES)))
    gradients = flat.grad.split(list(map(prod, SHAPES)))
    whole = [nn.Parameter(w.clone().view(s)) for w, s in zip(pieces, SHAPES, strict=True)]
    for p, g in zip(whole, gradients, strict=True):
        p.grad = g.view(p.shape)
    before = flat.detach().clone()
    offloaded.offloaded(LAMB, flat, SHAPES)()
    LAMB(whole, lr=offloaded._LR, betas=BETAS, eps=EPS["LAMB"], weight_decay=WEIGHT_DECAY).step()
    assert not torch.equal(flat, before)
    torch.testing.assert_close(flat.detach(), torch.cat([p.detach().flatten() for p in whole]), rtol=1e-6, atol=1e-9)


def test_what_cannot_be_compiled_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(offloaded, "load", cannot_be_compiled)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(NotAvailable, match="cannot be compiled here: no g"):
        offloaded.deepspeed_adam(nn.Parameter(torch.zeros(2)), 1)
    threads = torch.get_num_threads()
    offloaded.main(["--set", "tiny", "--rounds", "2", "--threads", "1"])
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "DeepSpeedCPUAdam is missing: cannot be compiled here: no g++ here." in said
    assert [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| ")][2:] == [
        offloaded.BASELINE,
        "LAMB offloaded",
        "LAMB8bit offloaded",
    ]
