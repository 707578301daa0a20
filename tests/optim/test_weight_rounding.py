"""Stochastic rounding of bfloat16 weights, beside an implementation in numpy that decides by float64 numbers, not by bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.backends.rounding import stochastically_rounded
from lightning_scale.optim.layout import LayerInfo, Layout, Run
from tests.optim.kinds import KINDS, bits, every_kind, set_gradients, through_a_file, train

BACKENDS = {"reference": False, "cpu": None, "triton": True}
every_backend = pytest.mark.parametrize("fused", BACKENDS.values(), ids=BACKENDS)
STOCHASTIC: dict[str, Any] = {"weight_rounding": "stochastic"}
LARGEST = float(torch.finfo(torch.bfloat16).max)


def _mixed(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x


def noise(name: str, step: int, index: NDArray[np.uint64], seed: int = 0) -> NDArray[np.float64]:
    """A number in [0, 1) for each element of a layer."""
    digest = np.frombuffer(blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "<u4")
    with np.errstate(over="ignore"):
        one, other = _mixed(digest + np.uint32(step) * np.uint32(0x9E3779B9))
        low, high = index.astype(np.uint32), (index >> np.uint64(32)).astype(np.uint32)
        found = _mixed(_mixed(low ^ one) ^ other ^ (high * np.uint32(0x9E3779B9)))
    return (found >> np.uint32(16)) / 65536.0


def rounded(x: NDArray[np.float32], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Finite numbers: toward zero, or one unit further where u is below the share of the unit that this cuts off."""
    magnitude = np.abs(x.astype(np.float64))
    unit = 2.0 ** np.maximum(np.floor(np.log2(np.maximum(magnitude, 1e-300))) - 7, -133)
    lower = np.floor(magnitude / unit) * unit
    up = (magnitude - lower) / unit + u >= 1
    return np.sign(x) * np.minimum(lower + up * unit, LARGEST)


SHAPES = ((300, 150), (33,), (70, 70), ())


def small_model(shapes: tuple[tuple[int, ...], ...] = SHAPES, seed: int = 0) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return {f"layer{i}": nn.Parameter(torch.randn(s, generator=draw).bfloat16()) for i, s in enumerate(shapes)}


@every_backend
@pytest.mark.parametrize("seed", [0, 7])
def test_bits_are_those_of_numpy(fused: bool | None, seed: int) -> None:
    params = small_model()
    optimizer = SGD8bit(params.items(), lr=0.003, momentum=0.0, fused=fused, weight_rounding_seed=seed, **STOCHASTIC)
    for step in range(1, 4):
        set_gradients(params.values(), step)
        expected = {}
        for name, p in params.items():
            assert p.grad is not None
            w, g = p.detach().float().numpy().ravel(), p.grad.float().numpy().ravel()
            u = noise(name, step, np.arange(w.size, dtype=np.uint64), seed)
            expected[name] = rounded(w - g * np.float32(0.003), u)
        optimizer.step()
        for name, p in params.items():
            assert (p.detach().double().numpy().ravel() == expected[name]).all(), (name, step)


@pytest.mark.parametrize("fused", [None, True], ids=["cpu", "triton"])
@every_kind
def test_backends_agree(make: Callable[..., Any], fused: bool | None) -> None:
    """From a difference of float32's rounding follows another bfloat16 seldom: one in 65,536 / 256 times per unit."""
    ours, theirs = small_model(), small_model()
    pairs = [
        (ours, make(ours.items(), fused=fused, **STOCHASTIC)),
        (theirs, make(theirs.items(), fused=False, **STOCHASTIC)),
    ]
    for params, optimizer in pairs:
        set_gradients(params.values(), 0)
        optimizer.step()
    different = torch.cat([(ours[name] != theirs[name]).flatten() for name in ours])
    assert different.float().mean() < 2e-3
    assert all(optimizer.state[p]["step"] == 1 for params, optimizer in pairs for p in params.values())


def test_every_kind_of_number() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (200_000,), generator=draw).to(torch.int32).view(torch.float32)
    u = torch.randint(0, 1 << 16, x.shape, generator=draw)
    found, finite = stochastically_rounded(x, u), x.isfinite()
    expected = rounded(x[finite].numpy(), u[finite].numpy() / 65536.0)
    assert (found[finite].double().numpy() == expected).all()
    assert found[~finite].equal(x[~finite].bfloat16()) or found[x.isnan()].isnan().all()
    kept = torch.tensor([0.0, -0.0, 1.5, -LARGEST, float("inf"), -float("inf"), 9.2e-41])
    kept = kept.bfloat16().float()
    for noisy in (0, 65535):
        assert bits(stochastically_rounded(kept, torch.full(kept.shape, noisy))) == bits(kept.bfloat16())
        assert stochastically_rounded(torch.tensor([float("nan")]), torch.tensor([noisy])).isnan().all()


@every_backend
def test_never_beyond_the_largest(fused: bool | None) -> None:
    """Steps of a quarter of a unit and more beyond it, which nearest makes infinite from one half on; infinities and NaN stay."""
    unit = 2.0**120
    p = nn.Parameter(torch.full((6, 1000), LARGEST).bfloat16())
    p.data[4], p.data[5] = float("inf"), float("nan")
    p.grad = torch.tensor([-unit / 4, -unit * 3 / 4, unit / 4, 0, 0, 0]).bfloat16()[:, None].repeat(1, 1000)
    SGD8bit([p], lr=1.0, momentum=0.0, fused=fused, **STOCHASTIC).step()
    new = p.detach()
    assert (new[:2] == LARGEST).all() and (new[3] == LARGEST).all()
    assert 0.65 < float((new[2] == LARGEST).float().mean()) < 0.85  # 0.75, within 7 standard deviations
    assert not new[4].isfinite().any() and new[5].isnan().all()  # (on CPUs Inf is NaN, for the decay of 0 times Inf)


@every_backend
def test_small_steps_are_kept_on_average(fused: bool | None) -> None:
    """Each of 64 steps is a sixteenth of the unit below 1, whose nearest is 1 again."""
    moved = {}
    for rounding in ("nearest", "stochastic"):
        p = nn.Parameter(torch.full((100, 100), 1.5).bfloat16())
        optimizer = SGD8bit([p], lr=2.0**-11, momentum=0.0, fused=fused, weight_rounding=rounding)  # type: ignore[arg-type]
        for _ in range(64):
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved[rounding] = 1.5 - float(p.detach().double().mean())
    assert moved["nearest"] == 0
    deviation = 2.0**-7 * (15 / 256 * 64 / 10_000) ** 0.5
    assert abs(moved["stochastic"] - 64 * 2.0**-11) < 5 * deviation


def test_numbers_of_elements_steps_layers_and_seeds_are_independent() -> None:
    index = np.arange(1 << 16, dtype=np.uint64)
    streams = [
        noise(*of)
        for of in (("a", 1, index), ("a", 2, index), ("b", 1, index), ("a", 1, index, 1), ("a", 1, index + 1))
    ]
    streams.append(noise("a", 1, index + np.uint64(1 << 32)))
    found = np.corrcoef(streams)
    assert np.abs(found[~np.eye(len(streams), dtype=bool)]).max() < 5 / 256
    for u in streams:
        counts = np.bincount((u * 256).astype(int), minlength=256)
        assert abs(((counts - 256) ** 2 / 256).sum() - 255) < 5 * (2 * 255) ** 0.5  # chi squared


# (Its many steps take Triton's interpreter a quarter of a minute, and the bits of one step are the same in all backends.)
@pytest.mark.parametrize("fused", [False, None, pytest.param(True, marks=pytest.mark.slow)], ids=BACKENDS)
def test_least_squares_at_a_tiny_rate(fused: bool | None) -> None:
    """The loss of a linear model falls as float32's does; rounded to nearest, no weight ever moves."""
    draw = torch.Generator().manual_seed(0)
    x, wanted = torch.randn(256, 64, generator=draw), 1 + torch.rand(64, generator=draw) / 4
    y = x @ wanted

    def losses(dtype: torch.dtype, **options: Any) -> tuple[float, float]:
        w = nn.Parameter(torch.full((64,), 1.0, dtype=dtype))
        optimizer = SGD8bit([w], lr=2e-3, momentum=0.0, fused=fused, **options)
        seen = []
        for _ in range(150):
            off = x @ w.detach().float() - y
            seen.append(float(off.square().mean()))
            w.grad = (2 * x.T @ off / len(x)).to(dtype)
            optimizer.step()
        return seen[0], seen[-1]

    first, exact = losses(torch.float32)
    assert losses(torch.bfloat16)[1] > 0.9 * first
    assert losses(torch.bfloat16, **STOCHASTIC)[1] < exact + 0.05 * first


@every_backend
@pytest.mark.parametrize("kind", [SGD8bit, AdamW8bit, LAMB, LARS])
def test_slices_of_flat_tensors_have_the_whole_layers_bits(kind: Any, fused: bool | None) -> None:
    """As ZeRO cuts them: anywhere. (Without ratios and codes, which ranks share or round apart.)"""
    whole, cut = small_model(((100, 47), (33,), (13, 5))), 2100
    options = {"lr": 0.002, "fused": fused, **STOCHASTIC}
    own = {"layer_adaptation": False} if kind in (LAMB, LARS) else {}
    excepted = {} if own else {"eight_bit_except": ["*"]}
    alone = kind([{"params": [*whole.items()], **own}], **options, **excepted)
    infos = tuple(LayerInfo(name, p.numel(), p.dim(), full_precision=True) for name, p in whole.items())
    long = torch.cat([p.detach().flatten() for p in whole.values()])
    slices = []
    for begin, end in ((0, cut), (cut, long.numel())):
        runs, start = [], 0
        for number, info in enumerate(infos):
            a, b = max(start, begin), min(start + info.numel, end)
            runs += [Run(number, 0, a - begin, a - start, b - a)] if a < b else []
            start += info.numel
        flat, layout = nn.Parameter(long[begin:end].clone()), Layout(infos, tuple(runs), (end - begin,))
        optimizer = kind([{"params": [flat], **own}], **options)
        optimizer.attach_layouts({flat: layout})
        slices.append((begin, end, flat, layout, optimizer))
    for step in range(3):
        set_gradients(whole.values(), step)
        gradient = torch.cat([p.grad.flatten() for p in whole.values() if p.grad is not None])
        alone.step()
        for begin, end, flat, layout, optimizer in slices:
            flat.grad = gradient[begin:end].clone()
            optimizer.decide([(layout, [flat.grad])])
            optimizer.step()
        expected = torch.cat([p.detach().flatten() for p in whole.values()])
        assert torch.cat([flat.detach() for _, _, flat, _, _ in slices]).equal(expected), step


@every_backend
@pytest.mark.parametrize("start", [(1 << 32) - (1 << 14), (1 << 33) + (3 << 14) + 5])
def test_elements_beyond_four_thousand_million(fused: bool | None, start: int) -> None:
    numel = 40_000
    flat = nn.Parameter(torch.linspace(1, 2, numel).bfloat16())
    before = flat.detach().float().numpy()
    layout = Layout((LayerInfo("large", 1 << 34, 2),), (Run(0, 0, 0, start, numel),), (numel,))
    optimizer = SGD8bit([flat], lr=0.001, momentum=0.0, fused=fused, **STOCHASTIC)
    optimizer.attach_layouts({flat: layout})
    flat.grad = torch.ones_like(flat)
    optimizer.decide([(layout, [flat.grad])])
    optimizer.step()
    u = noise("large", 1, np.arange(start, start + numel, dtype=np.uint64))
    assert (flat.detach().double().numpy() == rounded(before - np.float32(0.001), u)).all()


@pytest.mark.parametrize("kind", [LAMB, LARS, LAMB8bit, SGD8bit])
def test_other_memory_formats(kind: Any) -> None:
    """All backends number the elements alike."""
    found = []
    for fused in BACKENDS.values():
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(8, 16, 6, 6).bfloat16().to(memory_format=torch.channels_last))
        optimizer = kind([p], lr=0.01, fused=fused, **STOCHASTIC)
        p.grad = torch.randn_like(p)
        optimizer.step()
        found.append(p.detach().clone())
    for other in found[1:]:
        assert (other != found[0]).float().mean() < 2e-3


@every_kind
def test_a_resumed_run_goes_on_with_the_same_bits(make: Callable[..., Any]) -> None:
    def fresh(seed: int) -> tuple[nn.ParameterDict, Any]:
        model = nn.ParameterDict(small_model())
        return model, make(model.named_parameters(), weight_rounding_seed=seed, **STOCHASTIC)

    model, optimizer = fresh(3)
    train(model, optimizer, range(3))
    saved = through_a_file([model.state_dict(), optimizer.state_dict()])
    train(model, optimizer, range(3, 6))
    other, resumed = fresh(0)  # the state's seed has the say, as its options have
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    generator = torch.get_rng_state()
    set_gradients(other.parameters(), 3)
    resumed.step()
    assert generator.equal(torch.get_rng_state())
    train(other, resumed, range(4, 6))
    assert bits(other) == bits(model) and bits(resumed) == bits(optimizer)
    assert resumed.weight_rounding_seed == 3
    third, _ = fresh(0)
    assert bits(third) != bits(model)


@every_backend
def test_threads_skipped_steps_and_wrapped_names_change_nothing(fused: bool | None) -> None:
    found = []
    for threads, prefix, bad in ((1, "", False), (3, "_orig_mod.", True)):
        params = {prefix + name: p for name, p in small_model().items()}
        optimizer = LARS(params.items(), lr=0.1, fused=fused, **STOCHASTIC)
        torch.set_num_threads(threads)
        for step in range(3):
            if bad:
                for p in params.values():
                    p.grad = torch.full_like(p, float("nan"))
                optimizer.step()
            set_gradients(params.values(), step)
            optimizer.step()
        found.append(bits([p.detach() for p in params.values()]))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["LARS", "LARS-memoryless", "SGD8bit", "LAMB8bit"])
def test_state_of_a_run_that_rounded_to_nearest(name: str) -> None:
    """It has no step counts where none were needed; the run goes on from 1."""
    model, other = nn.ParameterDict(small_model()), nn.ParameterDict(small_model())
    before, after = KINDS[name](model.named_parameters()), KINDS[name](other.named_parameters(), **STOCHASTIC)
    train(model, before, range(2))
    after.load_state_dict(through_a_file(before.state_dict()))
    train(other, after, range(1))
    steps = {float(own["step"]) for own in after.state.values()}
    assert len(steps) == 1 and steps <= {1.0, 2.0, 3.0}


def test_float32_parameters_beside_bfloat16_ones() -> None:
    found = []
    for options in ({}, STOCHASTIC):
        a, b = nn.Parameter(torch.ones(64, 65)), nn.Parameter(torch.ones(64, 65).bfloat16())
        for fused in (None, False):
            optimizer = LARS([a, b], lr=0.01, fused=fused, **options)
            for step in range(3):
                set_gradients([a, b], step)
                optimizer.step()
        found.append((a.detach(), b.detach()))
    assert found[0][0].equal(found[1][0]) and not found[0][1].equal(found[1][1])


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit])
def test_what_does_not_go_together(kind: Any) -> None:
    half, small = nn.Parameter(torch.zeros(3).half()), nn.Parameter(torch.zeros(3).bfloat16())
    with pytest.raises(ValueError, match="master_weights=True keeps"):
        kind([small], lr=0.1, master_weights=True, **STOCHASTIC)
    with pytest.raises(ValueError, match="master_weights=True keeps"):
        kind([{"params": [small], "master_weights": True}], lr=0.1, **STOCHASTIC)
    with pytest.raises(ValueError, match="float16 parameters are rounded to nearest only"):
        kind([small, half], lr=0.1, **STOCHASTIC)
    with pytest.raises(ValueError, match=r'weight_rounding is \'up\': write "nearest" or "stochastic"'):
        kind([small], lr=0.1, weight_rounding="up")
    with pytest.raises(ValueError, match="weight_rounding_seed is 0\\.5: give a whole number"):
        kind([small], lr=0.1, weight_rounding_seed=0.5)
    with pytest.raises(ValueError, match="weight_rounding holds for all groups together"):
        kind([{"params": [small], "weight_rounding": "stochastic"}], lr=0.1)
    with pytest.warns(UserWarning, match="not used: none of the parameters is bfloat16"):
        kind([nn.Parameter(torch.zeros(3))], lr=0.1, **STOCHASTIC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind([nn.Parameter(torch.zeros(3)), small], lr=0.1, **STOCHASTIC)


def test_masters_that_come_with_a_state_and_a_late_float16() -> None:
    params = small_model()
    masters = LAMB(params.items(), master_weights=True)
    set_gradients(params.values(), 0)
    masters.step()
    optimizer = LAMB(params.items(), **STOCHASTIC)
    with pytest.raises(ValueError, match="keeps or has kept some"):
        optimizer.load_state_dict(masters.state_dict())
    assert not optimizer.state
    model = nn.Linear(3, 3).bfloat16()
    late = SGD8bit(model.parameters(), **STOCHASTIC)
    model.half()
    set_gradients(model.parameters(), 0)
    with pytest.raises(ValueError, match="float16 parameters are rounded to nearest only"):
        late.step()
