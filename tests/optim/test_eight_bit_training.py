"""How far 8-bit states lead a training away from float32's: 100 steps of a small network on a real text.

Measured on a CPU with torch 2.13: the distance between both runs' weights, relative to how far float32's went, and the
losses over the whole text (4.34 at the start):

=================  ========  ======  =======
optimizer          distance  8 bits  float32
=================  ========  ======  =======
LAMB8bit           0.8 %     1.8091  1.8085
LARS8bit           2.1 %     1.4254  1.4249
LARS8bit-momentum  1.6 %     1.4884  1.4884
AdamW8bit          2.6 %     1.7845  1.7851
SGD8bit            2.7 %     1.6884  1.6884
=================  ========  ======  =======
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit

SEEN = 8  # characters from which the next is guessed

Kind = Callable[..., Any]
# 8-bit, float32, options, and bounds on distance and on the difference of the losses: about twice what was measured.
CASES: dict[str, tuple[Kind, Kind, dict[str, Any], float, float]] = {
    "LAMB8bit": (LAMB8bit, LAMB, {"lr": 0.01}, 0.02, 0.002),
    "LARS8bit": (LARS8bit, LARS, {"lr": 1.0, "trust_coefficient": 0.01}, 0.05, 0.002),
    "LARS8bit-momentum": (LARS8bit, LARS, {"lr": 0.02, "trust_norm": "momentum"}, 0.04, 0.002),
    "AdamW8bit": (AdamW8bit, torch.optim.AdamW, {"lr": 2e-3}, 0.06, 0.002),
    "SGD8bit": (SGD8bit, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, 0.06, 0.002),
}


def text() -> tuple[Tensor, Tensor, int]:
    """The licence, as (what was seen, what came) pairs, and its number of different characters."""
    letters = (Path(__file__).parents[2] / "LICENSE").read_bytes()
    places = {letter: place for place, letter in enumerate(sorted(set(letters)))}
    codes = torch.tensor([places[letter] for letter in letters])
    return codes.unfold(0, SEEN, 1)[:-1], codes[SEEN:], len(places)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def train(kind: Kind, options: dict[str, Any], steps: int = 100) -> tuple[Tensor, Tensor, float]:
    """Weights before and after, and the loss over the whole text; 85,000 of 88,000 weights have their state in 8 bits."""
    x, y, letters = text()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(letters, 32), nn.Flatten(), nn.Linear(32 * SEEN, 256), nn.Tanh(), nn.Linear(256, letters)
    )
    start = flat(model)
    optimizer = kind(model.parameters(), **options)
    batches = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(y), (256,), generator=batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        return start, flat(model), float(nn.functional.cross_entropy(model(x), y))


@pytest.mark.parametrize(("kind", "float_kind", "options", "distance", "loss"), CASES.values(), ids=CASES)
def test_training_stays_near_float32s(
    kind: Kind, float_kind: Kind, options: dict[str, Any], distance: float, loss: float
) -> None:
    start, weights, first = train(kind, options)
    _, expected, second = train(float_kind, options)
    apart = float((weights - expected).norm() / (expected - start).norm())
    assert 0 < apart <= distance
    assert abs(first - second) <= loss and second < 2.5
