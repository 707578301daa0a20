"""The compiled CPU kernels take the plain torch step: codes bit for bit, float32 state within rounding."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit, members
from lightning_scale.optim.codec import SIGNED, UNSIGNED, Code, nearest_by_search
from lightning_scale.optim.kernels import choice, parts
from lightning_scale.optim.kernels.compiled import codec, lamb, lars, programs, rows, scratch
from lightning_scale.optim.kernels.compiled.whole_layers import one_by_one
from lightning_scale.optim.kernels.work import Guard, LambBucket, TrustRatio
from lightning_scale.optim.layout import LayerInfo, Layout, Segment, whole_layout
from tests.optim.kinds import bits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs g++")

KINDS: dict[str, Callable[..., Any]] = {
    "LAMB": lambda p, **o: LAMB(p, **o),
    "LAMB-uncorrected": lambda p, **o: LAMB(p, bias_correction=False, trust_ratio_clip=(0.01, 0.5), maximize=True, **o),
    "LAMB-clipped": lambda p, **o: LAMB(p, max_grad_norm=0.5, weight_norm_clip=(0.1, 2.0), **o),
    "LARS": lambda p, **o: LARS(p, lr=0.1, **o),
    "LARS-nesterov": lambda p, **o: LARS(p, lr=0.1, nesterov=True, lr_in_momentum=False, max_grad_norm=1.0, **o),
    "LARS-momentum": lambda p, **o: LARS(p, lr=0.1, trust_norm="momentum", maximize=True, **o),
    "LAMB8bit": lambda p, **o: LAMB8bit(p, max_grad_norm=0.5, maximize=True, **o),
    "AdamW8bit": lambda p, **o: AdamW8bit(p, **o),
    "LARS8bit": lambda p, **o: LARS8bit(p, lr=0.1, **o),
    "LARS8bit-nesterov": lambda p, **o: LARS8bit(p, lr=0.1, nesterov=True, lr_in_momentum=False, **o),
    "LARS8bit-momentum": lambda p, **o: LARS8bit(p, lr=0.1, trust_norm="momentum", max_grad_norm=1.0, **o),
    "SGD8bit": lambda p, **o: SGD8bit(p, lr=0.1, dampening=0.1, **o),
    "SGD8bit-nesterov": lambda p, **o: SGD8bit(p, lr=0.1, nesterov=True, **o),
}
# A step rounds about 25 times, and norms add up thousands of squares in another order.
TOLERANCE = 64 * 2.0**-24
# Scalars, single elements, nothing, less than a row, rows with and without a rest, several calls, a matrix not contiguous.
SHAPES: list[tuple[int, ...]] = [
    (5, 7), (), (1,), (0, 3), (700,), (91, 101), (64, 256), (64, 2304), (97, 311), (4096,), (5001,), (40, 120),
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each program is compiled once a session, in a folder that goes away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tensors take the compiled way, in several parts and calls."""
    monkeypatch.setattr(choice, "COMPILED_FROM", 1)
    monkeypatch.setattr(rows, "FEWEST_ROWS", 8)
    for name in ("CHUNK_ROWS", "CODED_CHUNK_ROWS", "BATCH_ROWS"):
        monkeypatch.setattr(rows, name, 16)
    monkeypatch.setattr(parts, "PART", 20_000)
    monkeypatch.setattr(parts, "SMALL", 1_000)
    monkeypatch.setattr(parts, "LEAST", 1)


def parameters(dtype: torch.dtype = torch.float32, shapes: list[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    values = [v.t().contiguous().t() if v.shape == (40, 120) else v for v in values]
    return [nn.Parameter(v) for v in values]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def compare(ours: Any, theirs: Any, a: list[nn.Parameter], b: list[nn.Parameter], tolerance: float = TOLERANCE) -> None:
    for p, q in zip(a, b, strict=True):
        for key, reference in {"weight": q.detach(), **theirs.state[q]}.items():
            mine = p.detach() if key == "weight" else ours.state[p][key]
            assert (mine.dtype, mine.shape) == (reference.dtype, reference.shape)
            if reference.dtype == torch.uint8 or key.endswith("absmax") or key == "step":
                assert torch.equal(mine, reference), key
            elif reference.numel():
                limit = (TOLERANCE if reference.dtype == torch.float32 and key != "master" else tolerance) * float(
                    reference.abs().max()
                )
                torch.testing.assert_close(mine, reference, rtol=0, atol=limit)


def pair(make: Callable[..., Any], dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    a, b = parameters(dtype), parameters(dtype)
    both = [
        make([{"params": p[:4]}, {"params": p[4:], "weight_decay": 0.3}], weight_decay=0.05, fused=fused, **options)
        for p, fused in ((a, None), (b, False))
    ]
    return *both, a, b


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


def test_new_shapes_and_rates_compile_nothing() -> None:
    optimizer = LAMB(parameters())
    set_gradients(optimizer.param_groups[0]["params"], 0)
    optimizer.step()
    before = dict(programs._tried)
    shapes = [(i % 7 + 1, 97 * i + 1) for i in range(60)]
    for lr in (0.1, 0.2, 0.3, 0.4, 0.5):
        params = parameters(shapes=shapes)
        groups = [{"params": [p], "weight_decay": 0.01 * i} for i, p in enumerate(params)]
        optimizer = LAMB(groups, lr=lr, betas=(0.8 + lr / 10, 0.99))
        set_gradients(params, 1)
        optimizer.step()
    assert programs._tried == before


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


def test_scratch_is_the_largest_tensors() -> None:
    scratch._held.clear()
    params = parameters(shapes=[(64, 2304), (300, 64), (64, 2304)])
    optimizer = LAMB(params)
    set_gradients(params, 0)
    optimizer.step()
    assert scratch._held[0].numel() <= 64 * 2304 + rows.WIDTH


def test_what_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("asked for a program")

    monkeypatch.setattr(lamb.__globals__["load"].__globals__["torch"]._inductor, "aoti_load_package", refuse)
    monkeypatch.setattr(programs, "_tried", {})
    for p, options in (
        (torch.randn(30, 30, dtype=torch.float64), {}),
        (torch.randn(30, 60)[:, ::2], {}),
        (torch.randn(30, 30), {"fused": False}),
        (torch.randn(30, 30), {"eps": 0.0}),
    ):
        parameter = nn.Parameter(p)
        set_gradients([parameter], 0)
        LAMB([parameter], **options).step()
    monkeypatch.setattr(choice, "COMPILED_FROM", 901)
    parameter = nn.Parameter(torch.randn(30, 30))
    set_gradients([parameter], 0)
    LAMB([parameter]).step()
    assert programs._tried == {}


CHILD = """
import warnings, torch
from torch import nn
from lightning_scale.optim import LAMB
from lightning_scale.optim.kernels import choice
choice.COMPILED_FROM = 1
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    results = []
    for fused in (None, False):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(64, 512))
        optimizer = LAMB([p], fused=fused)
        for _ in range(3):
            p.grad = torch.randn(64, 512)
            optimizer.step()
        results.append(p.detach())
assert (results[0] - results[1]).abs().max() <= 1e-6, "another step"
print(sum("could not be compiled" in str(w.message) for w in seen), torch.equal(*results))
"""


@pytest.mark.parametrize(("warm", "expected"), [(False, "1 True"), (True, "0")])
def test_without_a_compiler(warm: bool, expected: str, tmp_path: Path) -> None:
    """One warning and the plain step; what was compiled before needs no compiler."""
    if warm:
        params = parameters()
        set_gradients(params, 0)
        LAMB(params).step()
    cache = os.environ["TORCHINDUCTOR_CACHE_DIR"] if warm else str(tmp_path)
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "CXX": str(tmp_path / "missing"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected), (done.stdout, done.stderr)


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


def test_no_warnings_and_no_settings_changed() -> None:
    before = torch._inductor.config.save_config_portable() if hasattr(torch._inductor, "config") else None
    params = parameters()
    set_gradients(params, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LAMB(params).step()
    if before is not None:
        assert torch._inductor.config.save_config_portable() == before
