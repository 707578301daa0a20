"""The 8-bit optimizers' arguments, and their place among the other optimizers."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit

from .test_bad_arguments import COMMON, INF, NAN, parameter, refused

LAYERWISE = ("weight_norm_clip", "trust_ratio_clip")
PLAIN = [options for options in COMMON if next(iter(options)) not in LAYERWISE]
CASES: list[tuple[Any, dict[str, Any]]] = [
    *((kind, options) for kind in (LAMB8bit, LARS8bit) for options in COMMON),
    *((AdamW8bit, options) for options in PLAIN),
    *((SGD8bit, options) for options in PLAIN if "eps" not in options),
    (LAMB8bit, {"betas": (1.0, 0.999)}),
    (AdamW8bit, {"betas": (0.9, NAN)}),
    (AdamW8bit, {"betas": 0.9}),
    (LARS8bit, {"nesterov": True, "momentum": 0.0}),
    (SGD8bit, {"momentum": 1.0}),
    (SGD8bit, {"dampening": INF}),
    (SGD8bit, {"nesterov": True, "momentum": 0.0}),
    (SGD8bit, {"nesterov": True, "dampening": 0.1}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_bad_ones_are_refused(kind: Any, options: dict[str, Any]) -> None:
    name = next(iter(options))
    refused(name, lambda: kind([parameter()], **{"lr": 0.1, **options}))
    if name != "max_grad_norm":
        refused(name, lambda: kind([{"params": [parameter()], **options}], lr=0.1))


@pytest.mark.parametrize(("eight_bit", "kind"), [(LAMB8bit, LAMB), (LARS8bit, LARS)])
def test_the_layerwise_ones_are_called_as_in_float32(eight_bit: Any, kind: Any) -> None:
    assert issubclass(eight_bit, kind)
    own = inspect.signature(eight_bit).parameters
    assert set(own) == {"params", "args", "eight_bit_except", "kwargs"}  # all else is passed on
    assert eight_bit([parameter()], lr=0.1).defaults == kind([parameter()], lr=0.1).defaults


@pytest.mark.parametrize("kind", [AdamW8bit, SGD8bit])
def test_the_others_have_no_ratios(kind: Any) -> None:
    assert not hasattr(kind([parameter()]), "layer_stats")
    with pytest.warns(UserWarning, match="does not use these keys of a parameter group: layer_adaptation"):
        kind([{"params": [parameter()], "layer_adaptation": False}])
    refused("weigth_decay.*weight_decay", lambda: kind([{"params": [parameter()], "weigth_decay": 0.1}]))


def test_every_parameter_of_adamw_decays() -> None:
    """As with torch's: biases too, unless their group says otherwise."""
    bias, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = AdamW8bit([{"params": [bias]}, {"params": [other], "weight_decay": 0.0}], lr=0.5, weight_decay=0.1)
    bias.grad, other.grad = torch.zeros(3), torch.zeros(3)
    optimizer.step()
    assert bias.tolist() == pytest.approx([0.95] * 3) and other.tolist() == [1.0] * 3


@pytest.mark.parametrize("kind", [LAMB8bit, LARS8bit, AdamW8bit, SGD8bit])
def test_complex_and_sparse_are_refused(kind: Any) -> None:
    refused("complex", lambda: kind([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))], lr=0.1))
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = kind(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1, 2])).sum().backward()
    refused("sparse", optimizer.step)
