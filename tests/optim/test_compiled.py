"""The compiled CPU kernels take the plain torch step: codes bit for bit, float32 state within rounding."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_scale.optim import members
from lightning_scale.optim.backends.bucket import Guard, LambBucket, TrustRatio
from lightning_scale.optim.kernels.compiled import codec, lamb, programs
from lightning_scale.optim.layout import LayerInfo, Layout, Segment
from lightning_scale.optim.quantization import SIGNED, UNSIGNED, Code, nearest_by_search
from tests.optim.compiled_pairs import KINDS, TOLERANCE, compare, needs_compiler, pair, parameters, set_gradients
from tests.optim.kinds import bits

pytestmark = needs_compiler


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_plain_step(make: Callable[..., Any]) -> None:
    ours, theirs, a, b = pair(make)
    for step in range(4):
        set_gradients(a, step), set_gradients(b, step)
        ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.1 / (1 + step)
        ours.step(), theirs.step()
        compare(ours, theirs, a, b)
    assert any(programs._tried.values())
    if hasattr(ours, "layer_stats"):
        mine, reference = ours.layer_stats(), theirs.layer_stats()
        assert mine.keys() == reference.keys()
        for name in mine:
            for x, y in zip(mine[name], reference[name], strict=True):
                torch.testing.assert_close(x, y, rtol=TOLERANCE, atol=1e-9)


@pytest.mark.parametrize(("options", "tolerance"), [({}, 2.0**-7), ({"master_weights": True}, TOLERANCE)])
def test_bfloat16(options: dict[str, Any], tolerance: float) -> None:
    ours, theirs, a, b = pair(KINDS["LAMB"], torch.bfloat16, **options)
    set_gradients(a, 0), set_gradients(b, 0)
    ours.step(), theirs.step()
    if options:
        assert all(torch.equal(p.detach(), ours.state[p]["master"].bfloat16()) for p in a)
        a, b = [ours.state[p]["master"] for p in a], [theirs.state[p]["master"] for p in b]
        for mine, reference in zip(a, b, strict=True):
            torch.testing.assert_close(mine, reference, rtol=0, atol=tolerance * 4)
    else:
        compare(ours, theirs, a, b, tolerance)


@pytest.mark.parametrize("make", [KINDS[k] for k in ("LAMB", "LARS", "LAMB8bit", "LARS8bit-momentum")])
def test_the_same_bits_for_any_number_of_threads(make: Callable[..., Any]) -> None:
    results = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        params = parameters()
        optimizer = make(params, weight_decay=0.05)
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
        results.append((bits([p.detach() for p in params]), bits(optimizer)))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("make", [KINDS[k] for k in ("LAMB", "LARS", "LARS-momentum", "LAMB8bit", "SGD8bit")])
@pytest.mark.parametrize(("place", "value"), [(7, "nan"), (7, "inf"), (4, "-inf"), (0, "nan")])
def test_a_step_with_a_non_finite_gradient_leaves_every_bit(make: Callable[..., Any], place: int, value: str) -> None:
    params = parameters()
    optimizer = make(params)
    for step in range(2):
        set_gradients(params, step)
        before = bits([p.detach() for p in params]), bits(optimizer)
        if step == 1:
            params[place].grad.view(-1)[-1] = float(value)  # type: ignore[union-attr]
        optimizer.step()
    assert (bits([p.detach() for p in params]), bits(optimizer)) == before
    assert int(optimizer.skipped_steps) == 1


@pytest.mark.parametrize("scale", [1e25, 1e-25])
@pytest.mark.parametrize("make", [KINDS["LARS"], KINDS["LARS-momentum"]])
def test_norms_beyond_float32s_squares(make: Callable[..., Any], scale: float) -> None:
    """Against float64: the plain float32 norm of these sizes is itself off by 1e-6."""
    params = parameters()
    set_gradients(params, 0)
    optimizer = make(params, weight_decay=0.0)
    for p in params:
        p.grad *= scale  # type: ignore[operator]
    exact = [[torch.linalg.vector_norm(x, dtype=torch.float64) for x in (p.detach(), p.grad)] for p in params]
    optimizer.step()
    share = 1 - 0.9 if optimizer.param_groups[0]["trust_norm"] == "momentum" else 1.0
    for stats, (w, g) in zip(optimizer.layer_stats().values(), exact, strict=True):
        torch.testing.assert_close(stats.weight_norm.double(), w, rtol=2e-7, atol=0)
        torch.testing.assert_close(stats.update_norm.double(), g * share, rtol=2e-7, atol=0)


@pytest.mark.parametrize("code", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
def test_codes_and_values_are_the_codecs(code: Code) -> None:
    """Every 499th float32 in [0, 1], and 65,536 around each threshold; the form that is compiled, in plain operations."""
    assert torch.equal(codec.values(torch.arange(256, dtype=torch.uint8), code), code.values())
    one = torch.ones(1, 1)
    end = int(torch.tensor(1.0).view(torch.int32))
    positive = torch.arange(0, end + 1, 499, dtype=torch.int32).view(torch.float32)
    around = code.thresholds().abs().view(torch.int32)[:, None] + torch.arange(-(2**15), 2**15, dtype=torch.int32)
    for x in (positive[None], around.clamp(0, end).view(torch.float32)):
        for signed in (x, -x) if code.signed else (x,):
            assert torch.equal(codec.nearest(signed, one, codec.cells(code), code), nearest_by_search(signed, code))


def test_segments_of_a_flat_partition() -> None:
    """Runs at odd places of flat tensors, one layer in two of them, padding between: as whole layers."""
    generator = torch.Generator().manual_seed(0)
    layers = (LayerInfo("a", 9000, 2), LayerInfo("b", 300, 1))
    segments = (Segment(0, 0, 3, 0, 5003), Segment(1, 0, 5006, 0, 300), Segment(0, 1, 1, 5003, 3997))
    flat = Layout(layers, segments, (5310, 4000))
    whole = Layout(layers, (Segment(0, 0, 0, 0, 9000), Segment(1, 1, 0, 0, 300)), (9000, 300))
    values = {name: [torch.randn(n, generator=generator) for n in (9000, 300)] for name in ("w", "g", "m", "v")}
    values["v"] = [v.square() for v in values["v"]]

    def bucket(layout: Layout) -> LambBucket:
        held = {name: [torch.full((n,), 7.0) for n in layout.tensor_numels] for name in values}
        for name, tensors in held.items():
            for s, view in zip(layout.segments, layout.views(tensors), strict=True):
                view.copy_(values[name][s.layer][s.layer_start : s.layer_start + s.length])
        steps = [torch.zeros(()) for _ in layout.tensor_numels]
        trust = TrustRatio(torch.ones(2, dtype=torch.bool), None, None)
        return LambBucket(
            layout, held["w"], held["w"], held["g"], 0.1, [0.1, 0.0], trust,
            steps=steps, exp_avg=held["m"], exp_avg_sq=held["v"],
        )  # fmt: skip

    results = []
    for layout in (flat, whole):
        b = bucket(layout)
        begin = lamb(b, Guard())
        assert begin is not None
        first = begin()
        first.second(torch.tensor([0.5, 2.0]))
        joined = [torch.zeros(9000), torch.zeros(300)]
        for s, view in zip(layout.segments, layout.views(b.weights), strict=True):
            joined[s.layer][s.layer_start : s.layer_start + s.length] = view
        results.append((joined, first.norms))
        if layout is flat:
            assert b.weights[0][:3].eq(7).all() and b.weights[0][5306:].eq(7).all() and b.weights[1][0] == 7
    for x, y in zip(*(r[0] for r in results), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-7, atol=0)
    exact = torch.stack([torch.linalg.vector_norm(w, dtype=torch.float64) for w in values["w"]])
    torch.testing.assert_close(results[0][1][0], exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["LAMB", "LARS-momentum", "LAMB8bit"])
def test_updates_of_several_groups_wait_for_the_collective(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where layers are shared with other ranks, all first passes come before all second ones."""
    results, real = [], members.whole_layout

    def shared_layout(*args: Any) -> Layout:
        return replace(real(*args), all_reduce=lambda t: None)

    for shared in (False, True):
        if shared:
            monkeypatch.setattr(members, "whole_layout", shared_layout)
        params = parameters(shapes=[(64, 300), (100, 64), (5000,)])
        optimizer = KINDS[name]([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.3}])
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
        results.append(params)
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "changed", ["g * rest1 * 1.001", "g * rest2 * g * 1.001", "w * decay * 1.01", "update * update * 1.01"]
)
def test_a_changed_constant_is_noticed(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that is compiled, run as it is: with one constant changed it is not the plain step."""
    source = Path(sys.modules[lamb.__module__].__file__ or "").read_text()
    old = changed[: changed.rindex(" * ")]
    assert old in source
    for new, agrees in ((old, True), (changed, False)):
        scope: dict[str, Any] = {}
        exec(compile(source.replace(old, new), "lamb", "exec"), scope)

        def run(*tensors: Tensor, scope: dict[str, Any] = scope) -> list[Tensor]:
            return list(scope["_first"](*tensors))

        monkeypatch.setitem(lamb.__globals__, "load", lambda wanted, run=run: [run])
        ours, theirs, a, b = pair(KINDS["LAMB"], lr=0.5)
        set_gradients(a, 0), set_gradients(b, 0)
        ours.step(), theirs.step()
        if agrees:
            compare(ours, theirs, a, b)
        else:
            with pytest.raises(AssertionError):
                compare(ours, theirs, a, b)
