"""numba's kernels take the reference's step: codes within rounding of a threshold, everything else within rounding."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS, LAMB8bit, LARS8bit, step_plan
from lightning_scale.optim.backends import choice
from lightning_scale.optim.backends.cpu import elements, quantization
from lightning_scale.optim.backends.cpu import launch as launching
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.quantization import SIGNED, UNSIGNED, Code, nearest_by_search
from tests.optim.cpu_pairs import KINDS, TOLERANCE, compare, pair, parameters, set_gradients, take_codes
from tests.optim.kinds import bits

pytestmark = pytest.mark.usefixtures("small_chunks")

every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
DTYPES = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16-master": (torch.bfloat16, {"master_weights": True}),
    "float16": (torch.float16, {}),
    "float16-master": (torch.float16, {"master_weights": True}),
}
every_dtype = pytest.mark.parametrize(("dtype", "options"), DTYPES.values(), ids=DTYPES)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were launched."""
    names: list[str] = []
    spread = launching.spread

    def noted(kernel: Any, *args: Any) -> None:
        names.append(kernel.__name__)
        spread(kernel, *args)

    monkeypatch.setattr(launching, "spread", noted)
    return names


@every_kind
def test_twenty_steps(make: Callable[..., Any], launched: list[str]) -> None:
    """Each layer within 2e-6 of the way that it went, and half a bit of its weights; statistics within rounding.

    Codes are compared after each step; the reference then goes on from the kernels' own.
    """
    ours, theirs, a, b = pair(make)
    way = [0.0] * len(b)
    for step in range(20):
        set_gradients(a, step), set_gradients(b, step)
        ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.1 / (1 + step)
        before = [q.detach().clone() for q in b]
        ours.step(), theirs.step()
        way = [far + float((q - w).detach().norm()) for far, q, w in zip(way, b, before, strict=True)]
        take_codes(ours, theirs, a, b)
    assert launched
    for p, q, far in zip(a, b, way, strict=True):
        assert float((p - q).detach().norm()) <= 2e-6 * far + 2.0**-24 * float(q.detach().norm())
    compare(ours, theirs, a, b)
    if hasattr(ours, "layer_stats"):
        mine, reference = ours.layer_stats(), theirs.layer_stats()
        assert mine.keys() == reference.keys()
        for name in mine:
            for x, y in zip(mine[name], reference[name], strict=True):
                torch.testing.assert_close(x, y, rtol=TOLERANCE, atol=1e-9)


@every_dtype
@every_kind
def test_every_dtype(make: Callable[..., Any], dtype: torch.dtype, options: dict[str, Any]) -> None:
    """One step from the same bits: weights are off by one rounding of their own type at most, masters by float32's."""
    ours, theirs, a, b = pair(make, dtype, **options)
    set_gradients(a, 0), set_gradients(b, 0)
    ours.step(), theirs.step()
    for p, q in zip(a, b, strict=True):
        step = torch.finfo(p.dtype).eps * q.detach().abs().float()
        assert bool(((p - q).detach().abs().float() <= step + TOLERANCE).all())
        if options:
            master = ours.state[p]["master"]
            assert torch.equal(p.detach(), master.to(dtype))
            torch.testing.assert_close(master, theirs.state[q]["master"], rtol=0, atol=4 * TOLERANCE)


@pytest.mark.parametrize("kind", ["LAMB", "LARS", "LARS-momentum"])
def test_memory_formats(kind: str, launched: list[str]) -> None:
    """channels_last and transposed weights with gradients and loaded state in another order; gaps go to the reference."""

    def made() -> list[nn.Parameter]:
        torch.manual_seed(0)
        wide = torch.randn(30, 60)
        return [
            nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)),
            nn.Parameter(torch.randn(40, 30).t()),
            nn.Parameter(wide[:, ::2]),
        ]

    a, b = made(), made()
    ours, theirs = KINDS[kind](a, weight_decay=0.1), KINDS[kind](b, weight_decay=0.1, fused=False)
    for step in range(3):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        for p in a[:2]:
            for key, value in ours.state[p].items():
                if key != "step":
                    ours.state[p][key] = value.contiguous()
    assert launched
    compare(ours, theirs, a, b)
    assert all(p.stride() == q.stride() for p, q in zip(a, made(), strict=True))


@pytest.mark.parametrize("kind", ["LAMB8bit", "LARS8bit-momentum", "AdamW8bit", "SGD8bit"])
def test_memory_formats_in_8_bits(kind: str, launched: list[str]) -> None:
    def made() -> list[nn.Parameter]:
        torch.manual_seed(0)
        return [
            nn.Parameter(torch.randn(48, 5, 5, 4).contiguous(memory_format=torch.channels_last)),
            nn.Parameter(torch.randn(90, 70).t()),
            nn.Parameter(torch.randn(70, 140)[:, ::2]),
        ]

    a, b = made(), made()
    ours, theirs = KINDS[kind](a, weight_decay=0.1), KINDS[kind](b, weight_decay=0.1, fused=False)
    for step in range(3):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
    assert any(name.endswith("8bit") for name in launched)
    compare(ours, theirs, a, b)


@every_kind
def test_the_same_bits_for_any_number_of_threads(make: Callable[..., Any]) -> None:
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        params = parameters()
        optimizer = make(params, weight_decay=0.05)
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
        results.append((bits([p.detach() for p in params]), bits(optimizer)))
    assert results[0] == results[1] == results[2] == results[3]


@pytest.mark.parametrize("kind", ["LAMB", "LAMB8bit", "LARS8bit-momentum"])
@pytest.mark.parametrize("odd", [False, True])
def test_updates_that_are_stored_past_the_cache(kind: str, odd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as without, in whole lines and where layers begin inside of one."""
    results = []
    for limit in (launching.CACHE, 0):
        monkeypatch.setattr(launching, "CACHE", limit)
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(n)) for n in (48 * 160, *([7, 6001] if odd else []), 70 * 128, 4096 + 16)]
        optimizer = KINDS[kind](params, exclude_1d=False)
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
        results.append((bits([p.detach() for p in params]), bits(optimizer)))
    assert results[0] == results[1]


def test_two_python_threads_step_at_once() -> None:
    torch.set_num_threads(2)
    results: dict[int, Any] = {}

    def train(number: int) -> None:
        params = parameters()
        optimizer = LAMB(params)
        for step in range(5):
            set_gradients(params, step)
            optimizer.step()
        results[number] = bits([p.detach() for p in params])

    train(0)
    threads = [threading.Thread(target=train, args=(i,)) for i in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[0] == results[1] == results[2] == results[3]


@elements.kernel
def count_up(turns: Any, out: np.ndarray) -> None:
    for c in elements.ascending(turns):
        out[c] += 1


@elements.kernel
def count_down(turns: Any, out: np.ndarray) -> None:
    for c in elements.descending(turns):
        out[c] += 1


@pytest.mark.parametrize("whose", ["torch's", "Python's"])
@pytest.mark.parametrize("counting", [count_up, count_down])
@pytest.mark.parametrize(("begin", "end"), [(1, 500), (0, 3), (7, 7)])
def test_every_chunk_is_taken_once(
    whose: str, counting: Callable[..., None], begin: int, end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By several threads, none before the others are there."""
    take_threads(whose, monkeypatch)
    taken = np.zeros(501, np.int64)
    met = threading.Barrier(3)

    def kernel(turns: Any, out: np.ndarray) -> None:
        if end > begin:
            met.wait(30)
        counting(turns, out)

    launching.spread(kernel, begin, end, taken)
    assert (taken[begin:end] == 1).all() and taken.sum() == end - begin


@pytest.mark.parametrize("whose", ["torch's", "Python's"])
def test_an_error_in_a_thread_is_raised_when_all_have_ended(whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_threads(whose, monkeypatch)
    met = threading.Barrier(3)
    ended: list[int] = []

    def kernel(turns: Any) -> None:
        if met.wait(30) == 1:
            raise ValueError("one of three")
        ended.append(1)

    with pytest.raises(ValueError, match="one of three"):
        launching.spread(kernel, 0, 9)
    assert len(ended) == 2


def take_threads(whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of torch's, or of Python's own."""
    if whose == "Python's":
        monkeypatch.setattr(launching, "_openmp", lambda: None)
    elif launching._openmp() is None:
        pytest.skip("torch has no OpenMP that can be found")
    torch.set_num_threads(3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_steps() -> None:
    """With threads of its own; torch's own operations would hang in a child of a process that has used theirs."""
    code = """
import os, torch
from torch import nn
from lightning_scale.optim import LAMB
torch.set_num_threads(2)
p = nn.Parameter(torch.ones(1 << 19))
p.grad = torch.ones(1 << 19)
optimizer = LAMB([p])
optimizer.step()
child = os.fork()
if child == 0:
    optimizer.step()
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr


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
@pytest.mark.parametrize("make", [KINDS["LARS"], KINDS["LARS-momentum"], KINDS["LARS8bit"]])
def test_norms_beyond_float32s_squares(make: Callable[..., Any], scale: float) -> None:
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


def assert_nearest(codes: np.ndarray, x: Tensor, code: Code) -> None:
    """Nearest, or the next one where x lies within 4 ulp of the threshold between them."""
    nearest = nearest_by_search(x, code).numpy()
    other = np.flatnonzero(codes != nearest)
    assert (np.abs(codes[other].astype(int) - nearest[other]) == 1).all()
    threshold = code.thresholds().numpy()[np.minimum(codes, nearest)[other]]
    assert (np.abs(x.numpy()[other].view(np.int32) - threshold.view(np.int32)) <= 4).all()


@pytest.mark.parametrize("code", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
def test_codes_are_the_nearest(code: Code) -> None:
    """Every 499th float32 in [0, 1], and 65,536 around each threshold; the kernel's own loop, compiled."""
    signed = code.signed
    write = quantization.write_signed if signed else quantization.write_unsigned
    read = quantization.read_signed if signed else quantization.read_unsigned
    values = np.empty(256, np.float32)
    read(values, np.arange(256, dtype=np.uint8), np.float32(1))
    assert np.array_equal(values, code.values().numpy())
    end = int(torch.tensor(1.0).view(torch.int32))
    positive = torch.arange(0, end + 1, 499, dtype=torch.int32).view(torch.float32)
    around = code.thresholds().abs().view(torch.int32)[:, None] + torch.arange(-(2**15), 2**15, dtype=torch.int32)
    for x in (positive, around.clamp(0, end).view(torch.float32).flatten()):
        for its in (x, -x) if signed else (x,):
            whole = torch.cat([its, torch.ones(1)])  # so that the scale is 1
            codes, scale = np.empty(len(whole), np.uint8), np.empty(1, np.float32)
            write(codes, scale, whole.numpy())
            assert scale[0] == 1
            assert_nearest(codes, whole, code)


@pytest.mark.parametrize("special", ["nan", "inf", "-inf", "zero"])
def test_scales_of_special_blocks(special: str) -> None:
    x = torch.linspace(-2, 2, 256)
    x = x * 0 if special == "zero" else x
    if special != "zero":
        x[17] = float(special)
    codes, scale = np.empty(256, np.uint8), np.empty(1, np.float32)
    quantization.write_signed(codes, scale, x.numpy())
    expected = {"nan": np.float32("nan"), "zero": 0}.get(special, np.finfo(np.float32).max)
    np.testing.assert_equal(scale[0], expected)
    if special == "zero":
        assert (codes == SIGNED.zero).all()


def _convert(kind: int, x: Tensor) -> Tensor:
    """Rounded to 16 bits by the kernels' own store."""
    out = torch.empty(len(x), dtype=torch.bfloat16 if kind == elements.BFLOAT16 else torch.float16)

    @elements.njit
    def store(x, address, kind):  # type: ignore[no-untyped-def]
        elements.store(x, address, kind, 0, x.size)

    store(x.numpy(), out.data_ptr(), kind)
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_torchs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(-(2**31), 2**31 - 1, (1 << 20,), generator=generator, dtype=torch.int64).to(torch.int32)
    edges = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 65504, 65519.99, 65520, 6e-8, 2.0**-25, 3.4e38])
    x = torch.cat([random.view(torch.float32), edges])
    got, expected = _convert(elements.KINDS[dtype], x), x.to(dtype)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got[~got.isnan()].view(torch.int16), expected[~expected.isnan()].view(torch.int16))


@pytest.mark.parametrize("name", ["LAMB", "LARS-momentum", "LAMB8bit", "LARS8bit-momentum"])
def test_where_layers_are_shared_all_first_passes_come_first(
    name: str, monkeypatch: pytest.MonkeyPatch, launched: list[str]
) -> None:
    results, real = [], step_plan.whole_layout

    def shared_layout(*args: Any) -> Layout:
        return replace(real(*args), all_reduce=lambda t: launched.append("all_reduce"))

    for shared in (False, True):
        if shared:
            monkeypatch.setattr(step_plan, "whole_layout", shared_layout)
        params = parameters(shapes=[(64, 300), (100, 64), (5000,)])
        optimizer = KINDS[name]([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.3}])
        for step in range(2):
            set_gradients(params, step)
            launched.clear()
            optimizer.step()
        results.append(params)
    *before, _last = (i for i, kernel in enumerate(launched) if kernel == "all_reduce")
    collective = max(i for i, kernel in enumerate(launched) if kernel == "all_reduce")
    assert all(kernel != "move" for kernel in launched[:collective])
    assert all(kernel in ("move", "all_reduce") for kernel in launched[collective:])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=TOLERANCE)


def test_what_the_reference_takes(launched: list[str]) -> None:
    for p, options in (
        (torch.randn(30, 30, dtype=torch.float64), {}),
        (torch.randn(30, 60)[:, ::2], {}),
        (torch.randn(30, 30), {"fused": False}),
    ):
        parameter = nn.Parameter(p)
        set_gradients([parameter], 0)
        LAMB([parameter], **options).step()  # type: ignore[arg-type]
    assert launched == []


def test_frozen_parameters_cost_nothing(launched: list[str]) -> None:
    backbone = [nn.Parameter(torch.randn(1 << 20), requires_grad=False) for _ in range(4)]
    head = nn.Parameter(torch.randn(10, 10))
    optimizer = LAMB([*backbone, head])
    set_gradients([head], 0)
    optimizer.step()
    assert [len(optimizer.state[p]) for p in backbone] == [0] * 4
    (scratch,) = optimizer._plan._scratch._held.values()
    assert len(scratch) == 100


def test_scratch_is_a_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the largest layer and small ones beside it, and the same memory again at every step."""
    params = parameters(shapes=[(64, 2304), (300, 64), (64, 2304)])
    optimizer = LAMB(params)
    seen = set()
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
        (scratch,) = optimizer._plan._scratch._held.values()
        seen.add((scratch.data_ptr(), len(scratch)))
    ((_, size),) = seen
    assert size <= 64 * 2304 + 300 * 64


def test_nothing_is_compiled_for_new_shapes_and_rates(launched: list[str]) -> None:
    def compiled() -> int:
        from lightning_scale.optim.backends.cpu import lamb

        return sum(len(kernel.signatures) for kernel in (lamb.measure, lamb.move, elements.sum_squares, elements.count))

    params = parameters()
    set_gradients(params, 0)
    LAMB(params).step()
    before = compiled()
    shapes = [(i % 7 + 1, 97 * i + 1) for i in range(60)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for lr in (0.1, 0.2, torch.tensor(0.3)):
            params = parameters(dtype, shapes)
            groups = [{"params": [p], "weight_decay": 0.01 * i} for i, p in enumerate(params)]
            set_gradients(params, 1)
            LAMB(groups, lr=lr, betas=(0.8, 0.99), max_grad_norm=1.0).step()
    assert compiled() == before


def changes() -> dict[str, Callable[[Any, nn.Parameter], Any]]:
    def grown(optimizer: Any, p: nn.Parameter) -> None:
        optimizer.add_param_group({"params": [nn.Parameter(torch.randn(5, 5))]})
        set_gradients(optimizer.param_groups[1]["params"], 9)

    def moved(optimizer: Any, p: nn.Parameter) -> None:
        p.data = p.data.clone()

    def halved(optimizer: Any, p: nn.Parameter) -> None:
        p.data = p.data.bfloat16()
        p.grad = p.grad.bfloat16()  # type: ignore[union-attr]

    def loaded(optimizer: Any, p: nn.Parameter) -> None:
        optimizer.load_state_dict(optimizer.state_dict())

    def replaced(optimizer: Any, p: nn.Parameter) -> None:
        optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].clone()

    def cleared(optimizer: Any, p: nn.Parameter) -> None:
        optimizer.state[p].clear()

    def without(optimizer: Any, p: nn.Parameter) -> None:
        p.grad = None

    def turned(optimizer: Any, p: nn.Parameter) -> None:
        p.grad = p.grad.t().contiguous().t()  # type: ignore[union-attr]

    def plain(optimizer: Any, p: nn.Parameter) -> None:
        optimizer.fused = False

    return {f.__name__: f for f in (grown, moved, halved, loaded, replaced, cleared, without, turned, plain)}


@pytest.mark.parametrize("change", changes().values(), ids=changes())
@pytest.mark.parametrize("kind", ["LAMB", "LAMB8bit"])
def test_what_has_changed_since_the_last_step_is_seen(kind: str, change: Callable[..., Any]) -> None:
    """Beside an optimizer by the reference, whose steps remember nothing."""
    ours, theirs, a, b = pair(KINDS[kind])
    for step in range(6):
        for optimizer, params in ((ours, a), (theirs, b)):
            set_gradients(params, step)
            if step == 3:
                torch.manual_seed(1)
                change(optimizer, params[6])
            optimizer.step()
    assert all(x.dtype == y.dtype for x, y in zip(a, b, strict=True))
    for p, q in zip(a, b, strict=True):
        wide = 2.0**-7 if p.dtype == torch.bfloat16 else 64 * TOLERANCE
        torch.testing.assert_close(p.detach(), q.detach(), rtol=wide, atol=wide)
        for key, value in theirs.state[q].items():
            if value.dtype == torch.float32 and value.numel():
                limit = wide * (1 + float(value.abs().max()))
                torch.testing.assert_close(ours.state[p][key], value, rtol=0, atol=limit)


def test_another_optimizers_state_is_refused() -> None:
    """Before a kernel reads memory that is not there."""
    p = nn.Parameter(torch.randn(64, 100))
    for kind, key, wrong in (
        (LAMB, "exp_avg", torch.zeros(64, 99)),
        (LAMB, "exp_avg_sq", torch.zeros(64, 100, dtype=torch.int64)),
        (LAMB8bit, "exp_avg_absmax", torch.zeros(3)),
        (LARS8bit, "momentum_buffer", torch.zeros(64, 100)),
        (LAMB, "exp_avg", None),
        (LAMB, "step", None),
        (LAMB, "step", torch.zeros((), dtype=torch.int64)),
        (LARS, "momentum_buffer", None),
    ):
        optimizer = kind([p], lr=0.1)  # type: ignore[operator]
        set_gradients([p], 0)
        optimizer.step()
        if wrong is None:
            optimizer.state[p]["another"] = optimizer.state[p].pop(key)
        else:
            optimizer.state[p][key] = wrong
        before = bits(p.detach())
        with pytest.raises(ValueError, match=r"load a state_dict"):
            optimizer.step()
        assert bits(p.detach()) == before


def test_autograd_sees_that_weights_have_changed() -> None:
    p = nn.Parameter(torch.randn(10))
    loss = (p * p).sum()
    p.grad = torch.ones(10)
    LAMB([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


CHILD = """
import sys, warnings, torch
from torch import nn
from lightning_scale.optim import LAMB, LARS
assert "numba" not in sys.modules
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    results = []
    for fused in (None, False):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(64, 512))
        for optimizer in (LAMB([p], fused=fused), LARS([p], lr=0.1, fused=fused)):
            assert "numba" not in sys.modules or fused is False or isinstance(optimizer, LARS)
            for _ in range(3):
                p.grad = torch.randn(64, 512)
                optimizer.step()
        results.append(p.detach())
said = [str(w.message) for w in seen if "pip install numba" in str(w.message)]
print(len(said), torch.equal(*results))
"""


@pytest.mark.parametrize("how", ["missing", "broken", "disabled", "there"])
def test_without_numba(how: str, tmp_path: Path) -> None:
    """One warning, and the reference's step; numba is imported when the first step is taken, not before."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if how in ("missing", "broken"):
        (tmp_path / "numba").mkdir()
        error = "raise ImportError('Numba needs NumPy 2.0 or less')" if how == "broken" else "raise ModuleNotFoundError"
        (tmp_path / "numba" / "__init__.py").write_text(error)
        env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env.get("PYTHONPATH", "")])
    if how == "disabled":
        env["NUMBA_DISABLE_JIT"] = "1"
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["0", "False"] if how == "there" else ["1", "True"]), (done.stdout, done.stderr)


def test_where_nothing_can_be_written_each_process_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", refuse)

    def double(x):  # type: ignore[no-untyped-def]
        return x + x

    assert elements.kernel(double)(3) == 6


def test_a_changed_helper_makes_other_kernels() -> None:
    """numba's own comparison looks at the kernel's file alone."""
    file = elements.sum_squares._cache._cache_file
    assert elements._sources() in file._source_stamp
    assert choice.has_cpu_kernels()


def test_no_warnings() -> None:
    params = parameters()
    set_gradients(params, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LAMB(params).step()
