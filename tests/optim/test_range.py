"""Norms over the whole of float32: squares that overflow or underflow, by numba's kernels and by the reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_scale.optim import LAMB, LARS
from lightning_scale.optim.backends import choice, norms
from lightning_scale.optim.backends.bucket import Backend, Bucket, Guard
from lightning_scale.optim.backends.reference import chunks
from lightning_scale.optim.layout import LayerInfo, Layout, Run, whole_layout

from .kinds import Make, every_kind, model_of, set_gradients

OwnNorms = Callable[[Layout, list[Tensor]], Tensor]
MAGNITUDES = [1e-44, 1e-38, 1e-30, 3e-23, 1e-19, 1e-10, 1.0, 1e10, 1e18, 1e20, 1e30, 1e37]


@pytest.fixture(params=[True, False], ids=["kernels", "reference"])
def own_norms(request: pytest.FixtureRequest) -> OwnNorms:
    """This rank's norm of each layer, by numba's kernels or by the reference."""

    def by_kernels(layout: Layout, tensors: list[Tensor]) -> Tensor:
        return norms.layer_squares(layout, tensors).sqrt()

    def by_reference(layout: Layout, tensors: list[Tensor]) -> Tensor:
        group = {"maximize": False, "lr": 0.1, "weight_decay": 0.0}
        names = tuple(layer.name for layer in layout.layers)
        states: list[dict[str, Tensor]] = [{} for _ in tensors]
        bucket = Bucket(group, names, layout, Backend.REFERENCE, tensors, tensors, tensors, states, True, math.inf)
        return chunks.norms(bucket, Guard(), lambda chunk: chunk.gradient())[1]

    return by_kernels if request.param else by_reference


@pytest.fixture(params=[True, False], ids=["kernels", "reference"])
def kernels(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


def exact(values: Tensor) -> float:
    """The norm in Python's floats, scaled."""
    scale = float(values.abs().max())
    return scale * math.sqrt(math.fsum((v / scale) ** 2 for v in values.reshape(-1).tolist())) if scale else 0.0


def values_of(magnitude: float) -> Tensor:
    return (torch.randn(7, 5, generator=torch.Generator().manual_seed(1)) * magnitude).float()


def clip_of(grads: list[Tensor], limit: float, kernels: bool) -> float:
    layout = whole_layout([str(i) for i in range(len(grads))], grads)
    result = norms.guard([(layout, grads)], test_finite=True, max_grad_norm=limit, by_kernels=kernels)
    assert result.finite is not None and bool(result.finite) and result.clip is not None
    return float(result.clip)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_a_layers_norm(magnitude: float, own_norms: OwnNorms) -> None:
    """Beside layers of other magnitudes, which must not lend it their digits; a zero layer stays zero."""
    tensors = [torch.zeros(4), values_of(magnitude), values_of(1.0), values_of(1e25), values_of(1e-25)]
    result = own_norms(whole_layout(list("abcde"), tensors), tensors)
    assert result.tolist() == pytest.approx([exact(t) for t in tensors], rel=1e-6)
    assert result[0] == 0


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_the_norm_of_a_layer_in_pieces(magnitude: float, own_norms: OwnNorms) -> None:
    values = values_of(magnitude).reshape(-1)
    tensors = [values[:20].clone(), values[20:].clone()]
    runs = (Run(0, 0, 0, 0, 20), Run(0, 1, 0, 20, 15))
    layout = Layout((LayerInfo("a", 35, 2),), runs, (20, 15))
    (result,) = own_norms(layout, tensors)
    assert float(result) == pytest.approx(exact(values), rel=1e-6)


@pytest.mark.parametrize("lie", [lambda t: t, lambda t: t.t(), lambda t: t[:, 1:]])
def test_the_norm_of_a_large_layer(lie: Callable[[Tensor], Tensor], own_norms: OwnNorms) -> None:
    """Squares added up one by one in float32 lose five digits of a norm like this one."""
    values = torch.randn(1000, 2001, generator=torch.Generator().manual_seed(0))
    tensors = [torch.ones(3), lie(values)]
    if not choice.takes_cpu_kernels(tensors) and own_norms.__name__ == "by_kernels":
        pytest.skip("the reference takes what has gaps")
    result = own_norms(whole_layout(["a", "b"], tensors), tensors)
    assert float(result[1]) == pytest.approx(exact(tensors[1]), rel=1e-8)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_the_clip_over_all_gradients(magnitude: float, kernels: bool) -> None:
    grads = [values_of(magnitude), 2 * values_of(magnitude)]
    total = math.hypot(*(exact(g) for g in grads))
    assert clip_of(grads, total / 10, kernels) == pytest.approx(0.1, rel=1e-6)
    assert clip_of(grads, total * 10, kernels) == pytest.approx(1, rel=1e-12)


def test_the_largest_gradients_there_are(kernels: bool) -> None:
    grads = [torch.full((1000,), torch.finfo(torch.float32).max), torch.ones(3)]
    assert clip_of(grads, 1e30, kernels) == pytest.approx(
        1e30 / (math.sqrt(1000) * torch.finfo(torch.float32).max), rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_only_a_nonfinite_element_is_nonfinite(dtype: torch.dtype, bad: float, kernels: bool) -> None:
    for grads in ([torch.tensor([1.0, bad], dtype=dtype)], [torch.tensor([3e38], dtype=dtype), torch.tensor([bad])]):
        layout = whole_layout([str(i) for i in range(len(grads))], grads)
        for limit in (None, 1.0):
            result = norms.guard([(layout, grads)], test_finite=True, max_grad_norm=limit, by_kernels=kernels)
            assert result.finite is not None and not bool(result.finite)


def test_float64_beyond_its_squares_is_not_nonfinite() -> None:
    grads = [torch.full((3,), 1e200, dtype=torch.float64)]
    result = norms.guard([(whole_layout(["a"], grads), grads)], test_finite=True, max_grad_norm=None)
    assert result.finite is not None and bool(result.finite)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e20, 1e30, 1e36])
def test_clipped_to_the_same_gradients_a_step_is_the_same(make: Make, dtype: torch.dtype, scale: float) -> None:
    """Gradients a power of ten larger are, once clipped, the same gradients."""
    model, twin = model_of(dtype), model_of(dtype)
    start = [p.detach().clone() for p in model.parameters()]
    for m, factor in ((model, 1.0), (twin, scale)):
        optimizer = make(m.parameters(), max_grad_norm=0.5, lr=10.0)
        set_gradients(m.parameters(), 3, scale=factor)
        optimizer.step()
        assert int(optimizer.skipped_steps) == 0
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for before, p, q in zip(start, model.parameters(), twin.parameters(), strict=True):
        assert not torch.equal(before, q)
        torch.testing.assert_close(q, p, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_a_trust_ratio_of_small_or_large_gradients(scale: float) -> None:
    weight = torch.nn.Parameter(torch.full((2, 3), 0.5))
    weight.grad = torch.full((2, 3), scale)
    optimizer = LARS([weight], lr=0.1, eps=0.0, trust_coefficient=1.0)
    optimizer.step()
    assert float(optimizer.layer_stats()["0.0"].trust_ratio) == pytest.approx(0.5 / scale, rel=1e-5)
    assert torch.allclose(weight, torch.full((2, 3), 0.45))


def test_a_trust_ratio_of_small_weights() -> None:
    weight = torch.nn.Parameter(torch.full((2, 3), 1e-25))
    weight.grad = torch.ones(2, 3)
    optimizer = LAMB([weight], lr=0.1, weight_decay=0.0)
    optimizer.step()
    stats = optimizer.layer_stats()["0.0"]
    assert float(stats.weight_norm) == pytest.approx(1e-25 * math.sqrt(6), rel=1e-5)
    assert float(stats.trust_ratio) == pytest.approx(1e-25, rel=1e-4)
