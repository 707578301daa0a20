"""The 8-bit optimizers against numpy with a quantizer of its own, and against torch's where the state is float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.backends.reference import chunks

from .eight_bit_reference import Twin
from .kinds import bits
from .pairs import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, Pair, arrays_of, rate, to_numpy

KINDS: dict[str, Any] = {"LAMB8bit": LAMB8bit, "LARS8bit": LARS8bit, "AdamW8bit": AdamW8bit, "SGD8bit": SGD8bit}
# Two parameters in 8 bits whose last block is not full, one of exactly 4,096 elements, one of an element less, small ones.
SHAPES: list[tuple[int, ...]] = [(70, 61), (48, 5, 5, 4), (4096,), (4095,), (6, 5), ()]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("LAMB8bit", {}),
    ("LAMB8bit", {"weight_decay": 0.1, "max_grad_norm": 0.5, "exclude_1d": False}),
    ("LAMB8bit", {"bias_correction": False, "maximize": True, "trust_ratio_clip": (0.5, 2.0)}),
    ("LARS8bit", {"weight_decay": 0.1}),
    ("LARS8bit", {"nesterov": True, "lr_in_momentum": False, "max_grad_norm": 3.0}),
    ("LARS8bit", {"trust_norm": "momentum", "weight_decay": 0.1}),
    ("LARS8bit", {"momentum": 0.0, "maximize": True}),
    ("AdamW8bit", {}),
    ("AdamW8bit", {"weight_decay": 0.3, "betas": (0.5, 0.9), "eps": 1e-3, "max_grad_norm": 1.0}),
    ("SGD8bit", {}),
    ("SGD8bit", {"weight_decay": 0.1, "dampening": 0.3, "maximize": True}),
    ("SGD8bit", {"nesterov": True, "weight_decay": 0.1, "max_grad_norm": 2.0}),
]
IDS = [f"{name}-{','.join(f'{k}={v}' for k, v in o.items()) or 'defaults'}" for name, o in CASES]
every_case = pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)


def run(twin: Twin, shapes: list[tuple[int, ...]], steps: int = 5) -> None:
    for step in range(steps):
        twin.step(arrays_of(step + 1, shapes), lr=rate(step))
    numbers = sum(p.numel() for p in twin.parameters if p.numel() >= 4096) * 2 * steps
    assert twin.flips <= 1 + numbers // (5 * twin.one_in)


@every_case
def test_against_numpy(name: str, options: dict[str, Any]) -> None:
    run(Twin(name, KINDS[name], arrays_of(0, SHAPES), options), SHAPES)


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "strided"])
@every_case
def test_the_grid_is_row_major_in_every_memory_format(name: str, options: dict[str, Any], layout: str) -> None:
    run(Twin(name, KINDS[name], arrays_of(0, SHAPES[:3]), options, layout), SHAPES[:3], steps=3)


@every_case
def test_bfloat16_with_master_weights(name: str, options: dict[str, Any]) -> None:
    options = {**options, "master_weights": True}
    # Quotients of two bfloat16 numbers are few: what lies on the middle of two codes does so many times over.
    twin = Twin(name, KINDS[name], arrays_of(0, SHAPES), options, dtype=torch.bfloat16, one_in=200)
    run(twin, SHAPES, steps=3)
    for p in twin.parameters:
        assert torch.equal(p.detach(), twin.optimizer.state[p]["master"].bfloat16())


@every_case
def test_bfloat16_without_master_weights_is_the_rounded_step(name: str, options: dict[str, Any]) -> None:
    shapes = SHAPES[:4]
    low = [nn.Parameter(torch.from_numpy(a).bfloat16()) for a in arrays_of(0, shapes)]
    high = [nn.Parameter(p.detach().float()) for p in low]
    first, second = KINDS[name](low, **{"lr": 0.1, **options}), KINDS[name](high, **{"lr": 0.1, **options})
    for step in range(3):
        for p, q, g in zip(low, high, arrays_of(step + 1, shapes), strict=True):
            p.grad = torch.from_numpy(g).bfloat16()
            q.grad = p.grad.float()
        first.step()
        second.step()
        for p, q in zip(low, high, strict=True):
            q.data.copy_(q.bfloat16())
            assert torch.equal(p.float(), q)
            assert bits(first.state[p]) == bits(second.state[q])


@pytest.mark.parametrize("name", KINDS)
def test_pieces_do_not_change_a_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = [(150, 70), (31, 300), (13, 11), (200,), (9, 17)]
    runs = []
    for largest in (1 << 18, 1 << 10, 256):
        monkeypatch.setattr(chunks, "LARGEST", largest)
        parameters = [nn.Parameter(torch.from_numpy(a).float()) for a in arrays_of(0, shapes)]
        optimizer = KINDS[name](parameters, lr=0.1, weight_decay=0.1, max_grad_norm=1.0, fused=False)
        for step in range(4):
            for p, g in zip(parameters, arrays_of(step + 1, shapes), strict=True):
                p.grad = torch.from_numpy(g).float()
            optimizer.step()
        runs.append((bits(parameters), bits(optimizer)))
    assert runs[0] == runs[1] == runs[2]


SMALL: list[tuple[int, ...]] = [(5, 7), (4, 3, 2, 2), (7,), (), (1, 1), (0, 3), (63, 65)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LAMB", {"weight_decay": 0.1}),
        ("LAMB", {"max_grad_norm": 0.2, "exclude_1d": False, "bias_correction": False}),
        ("LARS", {"weight_decay": 0.1, "maximize": True}),
        ("LARS", {"lr_in_momentum": False, "nesterov": True}),
        ("LARS", {"trust_norm": "momentum", "weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_parameters_follow_the_equations_of_lamb_and_lars(
    name: str, options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from . import pairs

    monkeypatch.setitem(pairs.OPTIMIZERS, name, (KINDS[f"{name}8bit"], pairs.OPTIMIZERS[name][1]))
    pair = Pair(name, [(arrays_of(0, SMALL)[:3], {"weight_decay": 0.3}), (arrays_of(0, SMALL)[3:], {})], options, dtype)
    for step in range(10):
        pair.step(arrays_of(step + 1, SMALL), lr=rate(step))
        pair.check(FLOAT32_TOLERANCE if dtype == torch.float32 else FLOAT64_TOLERANCE)


TORCHS: list[tuple[Any, Any, dict[str, Any]]] = [
    (AdamW8bit, torch.optim.AdamW, {}),
    (AdamW8bit, torch.optim.AdamW, {"weight_decay": 0.3, "betas": (0.5, 0.9), "eps": 1e-3}),
    (AdamW8bit, torch.optim.AdamW, {"weight_decay": 0.0, "maximize": True, "betas": (0.0, 0.99)}),
    (SGD8bit, torch.optim.SGD, {"momentum": 0.9}),
    (SGD8bit, torch.optim.SGD, {"momentum": 0.0, "weight_decay": 0.1}),
    (SGD8bit, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1, "maximize": True}),
    (SGD8bit, torch.optim.SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("kind", "torchs", "options"), TORCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_parameters_take_torchs_steps(
    kind: Any, torchs: Any, options: dict[str, Any], dtype: torch.dtype
) -> None:
    tolerance = FLOAT32_TOLERANCE if dtype == torch.float32 else FLOAT64_TOLERANCE
    own, other = ([nn.Parameter(torch.tensor(a, dtype=dtype)) for a in arrays_of(0, SMALL)] for _ in range(2))
    first, second = kind(own, lr=0.05, **options), torchs(other, lr=0.05, **options)
    for step in range(20):
        for optimizer in (first, second):
            optimizer.param_groups[0]["lr"] = rate(step)
        for p, q, g in zip(own, other, arrays_of(step + 1, SMALL), strict=True):
            p.grad, q.grad = (torch.tensor(g, dtype=dtype) for _ in range(2))
        first.step()
        second.step()
        for p, q in zip(own, other, strict=True):
            np.testing.assert_allclose(to_numpy(p), to_numpy(q), rtol=0, atol=tolerance * 4)


@pytest.mark.parametrize(
    ("kind", "torchs"), [(AdamW8bit, torch.optim.AdamW), (SGD8bit, torch.optim.SGD)], ids=["AdamW8bit", "SGD8bit"]
)
def test_the_defaults_are_torchs(kind: Any, torchs: Any) -> None:
    own, theirs = kind([nn.Parameter(torch.ones(1))]).defaults, torchs([nn.Parameter(torch.ones(1))]).defaults
    shared = own.keys() & theirs.keys() - {"momentum"}
    assert {"lr", "weight_decay", "maximize"} <= shared
    assert {key: own[key] for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize(
    ("kind", "float_kind"),
    [(LAMB8bit, LAMB), (LARS8bit, LARS), (AdamW8bit, torch.optim.AdamW), (SGD8bit, torch.optim.SGD)],
)
def test_the_first_step_is_that_of_float32(kind: Any, float_kind: Any) -> None:
    """It is computed from the moments before they are rounded: only then is it exact to float32's rounding."""
    (start,), (gradient,) = arrays_of(0, [(90, 70)]), arrays_of(1, [(90, 70)])
    weights = []
    for k, own in ((kind, {}), (float_kind, {"momentum": 0.9} if float_kind is torch.optim.SGD else {})):
        p = nn.Parameter(torch.from_numpy(start).float())
        p.grad = torch.from_numpy(gradient).float()
        optimizer = k([p], lr=0.1, **own)
        optimizer.step()
        weights.append(to_numpy(p))
        if hasattr(optimizer, "layer_stats"):
            weights.extend(np.array([float(x)]) for x in optimizer.layer_stats()["0.0"])
    half = len(weights) // 2
    for a, b in zip(weights[:half], weights[half:], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=8 * 2.0**-24 * max(1.0, np.abs(b).max()))


def test_the_step_after_reads_what_was_rounded() -> None:
    """Zeros as second gradient: what the momentum held is what moves the weight."""
    (gradient,) = arrays_of(1, [(64, 64)])
    p = nn.Parameter(torch.zeros(64, 64))
    optimizer = SGD8bit([p], lr=1.0, momentum=0.5)
    p.grad = torch.from_numpy(gradient).float()
    optimizer.step()
    before = p.detach().clone()
    p.grad = torch.zeros(64, 64)
    optimizer.step()
    moved = before - p.detach()
    exact = 0.5 * torch.from_numpy(gradient).float()
    assert 1e-4 < float((moved - exact).abs().max() / exact.abs().max()) < 0.0071


@pytest.mark.parametrize("kind", [LAMB8bit, AdamW8bit])
def test_a_small_element_beside_a_large_one_takes_no_leap(kind: Any) -> None:
    """Its v is 1e-8 of the block's largest: read as 0 beside an m that is not, the next step would be m/ε."""
    p = nn.Parameter(torch.ones(4096))
    optimizer = kind([p], lr=0.01, weight_decay=0.0)
    p.grad = torch.full((4096,), 1e-4)
    p.grad[::256] = 1.0
    optimizer.step()
    before = p.detach().clone()
    p.grad = torch.zeros(4096)
    for _ in range(20):
        optimizer.step()
        assert (p.detach() - before).abs().max() <= 0.015
        before = p.detach().clone()


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_any_size(name: str) -> None:
    """g² beyond float32, and gradients below it, leave finite weights and readable states."""
    p = nn.Parameter(torch.ones(64, 64))
    optimizer = KINDS[name]([p], lr=0.1)
    for scale in (1e19, 3e38, 1e-45, 0.0, 1.0):
        p.grad = torch.full((64, 64), scale)
        p.grad[::2] *= -1
        optimizer.step()
        if name != "SGD8bit":  # which moves as far as the gradient is large
            assert p.isfinite().all()
        for key, value in optimizer.state[p].items():
            assert value.isfinite().all(), key


@pytest.mark.parametrize("name", KINDS)
def test_a_nan_that_is_let_through_is_seen(name: str) -> None:
    p = nn.Parameter(torch.ones(64, 64))
    optimizer = KINDS[name]([p], lr=0.1, skip_nonfinite=False)
    p.grad = torch.ones(64, 64)
    p.grad[10, 10] = torch.nan
    optimizer.step()
    assert p[10, 10].isnan()
    scales = {key: value for key, value in optimizer.state[p].items() if key.endswith("absmax")}
    assert scales and all(int(value.isnan().sum()) == 1 for value in scales.values())
