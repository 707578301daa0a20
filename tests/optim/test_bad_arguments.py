"""Every bad argument is refused with one sentence that names it and says what to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import LAMB, LARS

ADVICE = re.compile(r"\b(give|write|use|leave|pass|set|choose|build|remove)\b")
NAN, INF = float("nan"), float("inf")
COMMON: list[dict[str, Any]] = [
    {"lr": -0.1},
    {"lr": NAN},
    {"lr": INF},
    {"lr": torch.tensor(-0.1)},
    {"lr": torch.ones(2)},
    {"eps": -1e-9},
    {"eps": NAN},
    {"weight_decay": -0.01},
    {"weight_decay": NAN},
    {"weight_norm_clip": (2.0, 1.0)},
    {"weight_norm_clip": (-1.0, 1.0)},
    {"weight_norm_clip": (0.0, NAN)},
    {"weight_norm_clip": (1.0,)},
    {"trust_ratio_clip": (2.0, 1.0)},
    {"trust_ratio_clip": (-1.0, 1.0)},
    {"max_grad_norm": 0.0},
    {"max_grad_norm": -1.0},
    {"max_grad_norm": NAN},
]
CASES: list[tuple[Any, str, dict[str, Any]]] = [
    *((kind, next(iter(options)), options) for kind in (LAMB, LARS) for options in COMMON),
    (LAMB, "betas", {"betas": (1.0, 0.999)}),
    (LAMB, "betas", {"betas": (-0.1, 0.999)}),
    (LAMB, "betas", {"betas": (0.9, 1.0)}),
    (LAMB, "betas", {"betas": (0.9, -0.1)}),
    (LAMB, "betas", {"betas": (NAN, 0.999)}),
    (LAMB, "betas", {"betas": (0.9,)}),
    (LARS, "momentum", {"momentum": -0.1}),
    (LARS, "momentum", {"momentum": 1.0}),
    (LARS, "trust_coefficient", {"trust_coefficient": -0.001}),
    (LARS, "trust_norm", {"trust_norm": "weights"}),
    (LARS, "nesterov", {"nesterov": True, "momentum": 0.0}),
    (LARS, "nesterov", {"nesterov": True, "trust_norm": "momentum"}),
    (LARS, "nesterov", {"nesterov": True, "dampening": 0.1}),
    (LARS, "dampening", {"dampening": NAN}),
    (LARS, "dampening", {"dampening": 0.1, "trust_norm": "momentum"}),
    (LARS, "trust_clip", {"trust_clip": True}),
    (LARS, "trust_clip", {"trust_clip": "LARC"}),
    (LARS, "trust_clip", {"trust_clip": (0.0, 1.0)}),
    (LARS, "lr_in_momentum", {"lr_in_momentum": False, "trust_norm": "momentum"}),
]


def refused(name: str, call: Callable[[], object]) -> None:
    """`call` raises a ValueError of one sentence that names what was wrong and gives advice."""
    with pytest.raises(ValueError, match=name) as caught:
        call()
    message = str(caught.value)
    assert ADVICE.search(message), message
    assert message.endswith(".") and "\n" not in message and ". " not in message, message


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 3))


@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_in_the_constructor(kind: Any, name: str, options: dict[str, Any]) -> None:
    refused(name, lambda: kind([parameter()], **{"lr": 0.1, **options}))


GROUP_CASES = [case for case in CASES if case[1] not in ("max_grad_norm",)]


@pytest.mark.parametrize(("kind", "name", "options"), GROUP_CASES)
def test_in_a_group(kind: Any, name: str, options: dict[str, Any]) -> None:
    refused(name, lambda: kind([{"params": [parameter()], **options}], lr=0.1))
    optimizer = kind([parameter()], lr=0.1)
    group = {"params": [parameter()], **options}
    refused(name, lambda: optimizer.add_param_group(group))
    assert len(optimizer.param_groups) == 1
    assert set(group) == {"params", *options}  # the caller's own stays as it was


@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_fused_where_nothing_can_run_it(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters on the CPU, where Triton does not run but in its interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")

    def construct_and_step() -> None:
        weight = parameter()
        optimizer = kind([weight], lr=0.1, fused=True)
        weight.grad = torch.ones_like(weight)
        optimizer.step()

    refused("fused", construct_and_step)


@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_sparse_gradients(kind: Any) -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = kind(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1, 2])).sum().backward()
    before = embedding.weight.detach().clone()
    refused("sparse", optimizer.step)
    assert torch.equal(embedding.weight, before)


@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_complex_parameters(kind: Any) -> None:
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    refused("complex", lambda: kind([weight], lr=0.1))


@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_no_parameters(kind: Any) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        kind([], lr=0.1)


@pytest.mark.parametrize(
    "options", [{"betas": 0.9}, {"weight_norm_clip": 3.0}, {"trust_ratio_clip": 3.0}, {"lr": "fast"}]
)
def test_the_wrong_kind_of_value(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        LAMB([parameter()], **options)


GOOD: list[tuple[Any, dict[str, Any]]] = [
    (LAMB, {"lr": 0.0, "betas": (0.0, 0.0), "eps": 0.0, "weight_decay": 0.0}),
    (LAMB, {"weight_norm_clip": (0.0, 10.0), "trust_ratio_clip": (1.0, 1.0), "max_grad_norm": 1e-9}),
    (LAMB, {"weight_norm_clip": [0.0, INF], "betas": [0.9, 0.99]}),
    (LARS, {"momentum": 0.0, "weight_decay": 0.0, "eps": 0.0, "trust_coefficient": 1}),
    (LARS, {"trust_norm": "momentum", "nesterov": False, "lr_in_momentum": True}),
]


@pytest.mark.parametrize(("kind", "options"), GOOD)
def test_values_at_the_edge_are_taken(kind: Any, options: dict[str, Any]) -> None:
    weight = parameter()
    weight.grad = torch.ones_like(weight)
    kind([weight], **{"lr": 0.1, **options}).step()
    assert torch.isfinite(weight).all()
