"""Right optimizers pass; wrong ones are noticed; the equations are the papers'."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.contestants import everyone
from benchmarks.contestants.contestant import Contestant, NotAvailable
from benchmarks.equations import hyper, rules
from benchmarks.equations.rules import Rule
from benchmarks.measure.check import Verdict, judge, trace
from benchmarks.parameter_sets import SETS
from lightning_scale.optim import LAMB, LARS
from tests.optim.reference import Options, Result, lamb_step, lars_step

CPU = torch.device("cpu")
OURS = [c for c in everyone() if c.package in ("lightning_scale", "torch") and not c.fused]


def verdict(contestant: Contestant, dtype: torch.dtype = torch.float32) -> Verdict:
    rule = contestant.claims
    return judge(trace(contestant.make, rule.rate, SETS["tiny"], CPU, dtype), rule)


@pytest.mark.parametrize("contestant", OURS, ids=lambda c: c.name)
def test_the_librarys_and_torchs_are_what_they_claim(contestant: Contestant) -> None:
    seen = verdict(contestant)
    assert seen.right, seen


@pytest.mark.parametrize("contestant", [c for c in OURS if c.master and c.fused is None], ids=lambda c: c.name)
def test_with_master_weights_too(contestant: Contestant) -> None:
    assert verdict(contestant, torch.bfloat16).right


WRONG: dict[str, tuple[Rule, Any]] = {
    "another beta": (rules.LAMB, lambda p, lr: LAMB(p, lr=lr, betas=(0.9, 0.98))),
    "no bias correction": (rules.LAMB, lambda p, lr: LAMB(p, lr=lr, betas=hyper.BETAS, bias_correction=False)),
    "no decay": (rules.LAMB, lambda p, lr: LAMB(p, lr=lr, betas=hyper.BETAS, weight_decay=0.0)),
    "vectors adapt": (rules.LAMB, lambda p, lr: LAMB(p, lr=lr, betas=hyper.BETAS, exclude_1d=False)),
    "another rate": (rules.LAMB, lambda p, lr: LAMB(p, lr=1.001 * lr, betas=hyper.BETAS)),
    "nesterov": (rules.LARS, lambda p, lr: LARS(p, lr, weight_decay=0.01, nesterov=True)),
    "the other LARS": (rules.LARS_MOMENTUM, lambda p, lr: LARS(p, lr, weight_decay=0.01)),
    "no ratio, within what 8 bits may": (
        rules.LAMB.in_8_bits(),
        lambda p, lr: torch.optim.AdamW(p, lr=lr, betas=hyper.BETAS),
    ),
}


@pytest.mark.parametrize(("rule", "make"), WRONG.values(), ids=WRONG)
def test_a_wrong_one_is_noticed(rule: Rule, make: Any) -> None:
    seen = judge(trace(make, rule.rate, SETS["tiny"], CPU, torch.float32), rule)
    assert not seen.right
    assert seen.error > 2 * rule.bound


class Broken(torch.optim.SGD):
    """Writes NaN into one parameter, and into the gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        self.param_groups[0]["params"][1].fill_(float("nan"))
        for p in self.param_groups[0]["params"]:
            p.grad.zero_()


def test_nan_never_passes_and_written_gradients_are_seen() -> None:
    seen = trace(lambda p, lr: Broken(p, lr=lr), 0.1, SETS["tiny"], CPU, torch.float32)
    assert seen.writes_gradients
    assert judge(seen, rules.SGD).error == float("inf")
    assert not judge(seen, replace(rules.SGD, bound=1e9)).right


def papers(one_step: Any, options: Options) -> Any:
    """A step of the test suite's numpy reference, as a step of the equations here."""

    def step(w: Tensor, g: Tensor, state: dict[str, Any], lr: float) -> Tensor:
        vector = w.dim() <= 1
        own = replace(options, lr=lr, layer_adaptation=not vector, weight_decay=0.0 if vector else 0.01)
        result: Result = one_step(w.numpy(), g.numpy(), state.get("numpy", {}), own)
        state["numpy"] = result.state
        return torch.from_numpy(np.asarray(result.weight))

    return step


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        (rules.LAMB, papers(lamb_step, Options(betas=hyper.BETAS, eps=hyper.EPS["LAMB"]))),
        (rules.LARS, papers(lars_step, Options(eps=hyper.EPS["LARS"], momentum=hyper.MOMENTUM))),
        (rules.LARS_MOMENTUM, papers(lars_step, Options(momentum=hyper.MOMENTUM, trust_norm="momentum"))),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_equations_are_those_of_the_other_tests(rule: Rule, theirs: Any) -> None:
    random = torch.Generator().manual_seed(1)
    for shape in [(6, 5), (4, 3, 2, 2), (7,)]:
        w = v = torch.randn(shape, generator=random, dtype=torch.float64)
        mine: dict[str, Any] = {}
        other: dict[str, Any] = {}
        for _ in range(4):
            g = torch.randn(shape, generator=random, dtype=torch.float64)
            w, v = rule.step(w, g, mine, rule.rate), theirs(v, g, other, rule.rate)
        torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-14)


PEERS = [c for c in everyone() if c.package not in ("lightning_scale", "torch")]


@pytest.mark.parametrize("contestant", PEERS, ids=lambda c: c.name)
def test_other_libraries_are_what_they_claim_or_what_is_said_of_them(contestant: Contestant) -> None:
    """Those that are installed."""
    try:
        seen = trace(contestant.make, contestant.claims.rate, SETS["tiny"], CPU, torch.float32)
    except (NotAvailable, RuntimeError) as reason:
        pytest.skip(str(reason))
    if contestant.instead is None:
        assert judge(seen, contestant.claims).right
    else:
        assert not judge(seen, contestant.claims).right
        assert judge(seen, contestant.instead).right
