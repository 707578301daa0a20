"""The other forms of LARS where they might go wrong: zeros, rates of 0, cancellation, and a count that dampening needs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import LARS, LARS8bit

from .kinds import model_of, set_gradients, through_a_file, train

every_backend = pytest.mark.parametrize("fused", [None, False, pytest.param(True, id="triton")])


def after_a_step(weight: torch.Tensor, gradient: torch.Tensor, fused: bool | None, **options: Any) -> Any:
    if fused:
        pytest.importorskip("triton")
    p = nn.Parameter(weight.clone())
    p.grad = gradient.clone()
    optimizer = LARS([{"params": [p], "weight_decay": options.pop("weight_decay", 0.5)}], fused=fused, **options)
    optimizer.step()
    return p.detach(), optimizer.layer_stats()["0.0"]


@every_backend
@pytest.mark.parametrize("which", ["weight", "decayed", "gradient"])
def test_a_ratio_is_one_where_a_norm_is_zero(which: str, fused: bool | None) -> None:
    """On g + λ w: not where the gradient alone is zero, for the decay still moves the layer."""
    w = torch.zeros(3, 4) if which == "weight" else torch.arange(1.0, 13).reshape(3, 4)
    g = {"weight": torch.ones(3, 4), "decayed": -0.5 * w, "gradient": torch.zeros(3, 4)}[which]
    moved, stats = after_a_step(w, g, fused, lr=0.5, trust_norm="decayed_gradient", eps=0.0, trust_coefficient=0.1)
    if which == "gradient":  # η ‖w‖ / ‖λ w‖ = 0.2
        assert float(stats.trust_ratio) == pytest.approx(0.2, rel=1e-6)
        torch.testing.assert_close(moved, w * (1 - 0.5 * 0.2 * 0.5))
    else:
        assert float(stats.trust_ratio) == 1.0
        torch.testing.assert_close(moved, w - 0.5 * (g + 0.5 * w))


@every_backend
def test_the_norm_is_of_what_the_step_is_made_of_where_gradient_and_decay_almost_cancel(fused: bool | None) -> None:
    """‖g‖² + 2λ⟨g, w⟩ + λ²‖w‖² would be nothing but rounding here."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(64, 64, generator=generator)
    g = -0.5 * w * (1 + 2.0**-18 * torch.randn(64, 64, generator=generator))
    _, stats = after_a_step(w, g, fused, lr=0.5, trust_norm="decayed_gradient")
    d = (g.double() + 0.5 * w.double()).float()  # exact but for one rounding: the two are within a factor of two
    assert float(stats.update_norm) == pytest.approx(float(d.double().norm()), rel=1e-6)


@every_backend
@pytest.mark.parametrize("trust_norm", ["gradient", "decayed_gradient", "momentum"])
@pytest.mark.parametrize("lr", [0.0, 1e-30, 0.004, 7.0])
def test_larc_takes_the_smaller_rate(lr: float, trust_norm: Any, fused: bool | None) -> None:
    """Of the ratio and lr, also with a rate of 0, and one that is a tensor."""
    generator = torch.Generator().manual_seed(1)
    w, g = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    options: dict[str, Any] = {"trust_norm": trust_norm, "trust_coefficient": 0.01}
    _, plain = after_a_step(w, g, fused, lr=lr, **options)
    ratio = float(plain.trust_ratio)
    assert 0.004 < ratio < 0.2
    for rate in (lr, torch.tensor(lr)):
        moved, stats = after_a_step(w, g, fused, lr=rate, trust_clip="larc", **options)
        assert float(stats.trust_ratio) == pytest.approx(1.0 if lr <= ratio else ratio / lr, rel=1e-5)
        d = (g + 0.5 * w) * (0.1 if trust_norm == "momentum" else 1.0)
        torch.testing.assert_close(moved, w - min(lr, ratio) * d)


def test_larc_after_the_bounds_of_the_ratio() -> None:
    w, g = torch.ones(2, 2), torch.ones(2, 2)
    _, stats = after_a_step(w, g, None, lr=2.0, trust_coefficient=5.0, trust_ratio_clip=(0.0, 0.5), trust_clip="larc")
    assert float(stats.trust_ratio) == 0.25


def test_rules_say_what_bounds_the_ratio() -> None:
    """`TrustRatioMonitor` reads them: with LARC a ratio of 1 is its clip, and no sign of zeros."""
    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    optimizer = LARS([p], lr=1e-5, trust_clip="larc")
    optimizer.step()
    assert optimizer.layer_rules()["0.0"].clip == (0.0, 1.0)


@pytest.mark.parametrize("kind", [LARS, LARS8bit])
@pytest.mark.parametrize("fused", [None, False])
def test_dampening_from_some_step_on_does_not_begin_again(kind: Any, fused: bool | None) -> None:
    """A momentum that has had its first gradient has had it, whether steps were counted then or not."""
    first, second = model_of(), model_of()
    optimizers = [kind(m.parameters(), lr=0.1, fused=fused) for m in (first, second)]
    train(first, optimizers[0], range(3))
    train(second, optimizers[1], range(3))
    optimizers[0].param_groups[0]["dampening"] = 0.5
    set_gradients(first.parameters(), 3)
    set_gradients(second.parameters(), 3, scale=0.5)  # 0.5 d into the momentum, but for ratios: of vectors alone
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(first[0].bias, second[0].bias)
    train(first, optimizers[0], range(4, 6))
    assert all(int(own["step"]) == 4 for own in optimizers[0].state.values())


@every_backend
def test_a_skipped_step_is_not_the_first(fused: bool | None) -> None:
    if fused:
        pytest.importorskip("triton")
    first, second = model_of(), model_of()
    dampened = LARS(first.parameters(), lr=0.1, dampening=0.5, fused=fused)
    set_gradients(first.parameters(), 0)
    first[0].weight.grad[0, 0] = torch.nan  # type: ignore[index]
    dampened.step()
    train(first, dampened, range(1, 2))
    train(second, LARS(second.parameters(), lr=0.1, fused=fused), range(1, 2))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert all(int(own["step"]) == 1 for own in dampened.state.values())


def test_a_state_from_before_these_options_goes_on_with_those_of_the_optimizer() -> None:
    first, second = model_of(), model_of()
    before = LARS(first.parameters(), lr=0.1, weight_decay=0.1)
    train(first, before, range(2))
    saved = through_a_file(before.state_dict())
    for group in saved["param_groups"]:
        del group["dampening"], group["trust_clip"]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    after = LARS(second.parameters(), lr=0.1, dampening=0.5, trust_clip="larc")
    after.load_state_dict(saved)
    assert (after.param_groups[0]["dampening"], after.param_groups[0]["trust_clip"]) == (0.5, "larc")
    after = LARS(second.parameters(), lr=0.1)
    after.load_state_dict(saved)
    train(first, before, range(2, 4))
    train(second, after, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_dampening_without_momentum_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="dampening is not used with momentum=0"):
        LARS([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.0, dampening=0.1)
