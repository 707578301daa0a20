"""How the compiled kernels share a bucket out: large layers one by one, small ones together."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from lightning_scale.optim.kernels import parts
from lightning_scale.optim.kernels.compiled import lamb, lars
from lightning_scale.optim.kernels.compiled.whole_layers import one_by_one
from lightning_scale.optim.layout import Layout, whole_layout
from tests.optim.compiled_pairs import KINDS, TOLERANCE, needs_compiler, parameters, set_gradients

pytestmark = needs_compiler


@pytest.mark.parametrize("kind", ["LAMB", "LARS-momentum"])
def test_large_layers_go_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of whole rows, and only they; with the statistics and weights of layers that go together."""
    stepped: list[int] = []

    def counted(bucket: Any, *rest: Any) -> Any:
        stepped.extend(layer.numel for layer in bucket.layout.layers)
        return one_by_one(bucket, *rest)

    module = sys.modules[(lamb if kind == "LAMB" else lars).__module__]
    monkeypatch.setattr(module, "one_by_one", counted)
    results = []
    for alone in (True, False):
        if not alone:
            monkeypatch.setattr(module, "all_step_alone", lambda layout: False)
        params = parameters()
        optimizer = KINDS[kind](params, weight_decay=0.1)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        statistics = optimizer.layer_stats()
        results.append([*(p.detach() for p in params), *(torch.stack(list(s)) for s in statistics.values())])
    assert sorted(stepped) == sorted(3 * [64 * 256, 64 * 2304, 4096])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=4 * 2.0**-24, atol=TOLERANCE)


def of_shapes(*shapes: tuple[int, ...]) -> Layout:
    return whole_layout([str(shape) for shape in shapes], [torch.empty(shape) for shape in shapes])


def test_small_layers_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LEAST", 1 << 19)
    assert [len(part) for part, _ in parts._cut(of_shapes((9,), (700,), (64, 256), (8,)), None)] == [4]
    monkeypatch.setattr(parts, "LEAST", 1)
    assert [len(part) for part, _ in parts._cut(of_shapes((900,), (800,), (700,)), None)] == [1, 1, 1]
