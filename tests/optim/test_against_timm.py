"""What docs/coming_from.md says of timm's options: the same steps. timm is not among the tests' packages (it brings
torchvision): `pip install --no-deps timm` brings these tests to run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.contestants.contestant import NotAvailable
from benchmarks.contestants.imports import load_file
from lightning_scale.optim import LAMB, LARS
from tests.optim.test_against_libraries import (
    assert_same,
    dtypes,
    matrices_and_vectors,
    rates,
    run_torch,
    schedules,
)


def timms(module: str, name: str) -> Any:
    try:
        return getattr(load_file(f"timm.optim.{module}"), name)
    except NotAvailable as error:
        pytest.skip(str(error))


def two_groups(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    matrices, vectors = matrices_and_vectors(parameters)
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


@dtypes
@schedules
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"max_grad_norm": 1.0}),
        ({"max_grad_norm": None}, {}),
        ({"trust_clip": True}, {"max_grad_norm": 1.0, "trust_ratio_clip": (0.0, 1.0)}),
        ({"bias_correction": False}, {"max_grad_norm": 1.0, "bias_correction": False}),
    ],
)
def test_lamb(dtype: torch.dtype, constant: bool, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    kind = timms("lamb", "Lamb")
    # ε is 1e-6 in both by default; larger here, so that a gradient near 0 does not make two roundings of it two steps.
    expected = run_torch(lambda p: kind(two_groups(p, 0.1), eps=1e-3, **theirs), dtype, rates(constant))
    got = run_torch(lambda p: LAMB(p, eps=1e-3, weight_decay=0.1, **ours), dtype, rates(constant))
    assert_same(got, expected, dtype)


@dtypes
def test_lamb_that_always_adapts(dtype: torch.dtype) -> None:
    kind = timms("lamb", "Lamb")
    expected = run_torch(lambda p: kind(two_groups(p, 0.1), eps=1e-3, always_adapt=True), dtype, rates(False))

    def make(parameters: list[nn.Parameter]) -> LAMB:
        matrices, vectors = two_groups(parameters, 0.1)
        return LAMB([matrices, {**vectors, "layer_adaptation": True}], eps=1e-3, max_grad_norm=1.0)

    assert_same(run_torch(make, dtype, rates(False)), expected, dtype)


@dtypes
@schedules
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars(dtype: torch.dtype, constant: bool, nesterov: bool) -> None:
    kind = timms("lars", "Lars")
    options = {"momentum": 0.9, "nesterov": nesterov}
    expected = run_torch(lambda p: kind(two_groups(p, 0.1), trust_coeff=0.3, **options), dtype, rates(constant))
    got = run_torch(
        lambda p: LARS(p, 0.1, weight_decay=0.1, trust_coefficient=0.3, lr_in_momentum=False, **options),
        dtype,
        rates(constant),
    )
    assert_same(got, expected, dtype)


@dtypes
@schedules
@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_larc_and_dampening(dtype: torch.dtype, constant: bool, dampening: float) -> None:
    kind = timms("lars", "Lars")
    options = {"momentum": 0.9, "dampening": dampening}
    expected = run_torch(
        lambda p: kind(two_groups(p, 0.1), trust_coeff=0.02, trust_clip=True, **options), dtype, rates(constant)
    )
    more: dict[str, Any] = {"trust_coefficient": 0.02, "trust_clip": "larc", "lr_in_momentum": False}
    got = run_torch(lambda p: LARS(p, 0.1, weight_decay=0.1, **more, **options), dtype, rates(constant))
    assert_same(got, expected, dtype)


@dtypes
def test_lars_without_decay_is_sgd_there_alone(dtype: torch.dtype) -> None:
    kind = timms("lars", "Lars")
    theirs = run_torch(lambda p: kind(p, momentum=0.9), dtype, rates(True))
    sgd = run_torch(lambda p: torch.optim.SGD(p, momentum=0.9), dtype, rates(True))
    assert_same(theirs, sgd, dtype)
    here = run_torch(lambda p: LARS(p, 0.1), dtype, rates(True))
    assert not torch.allclose(here[0], sgd[0], rtol=1e-3, atol=0)
