"""Which programs are compiled, how often, and what happens where none can be."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import LAMB
from lightning_scale.optim.backends import choice
from lightning_scale.optim.kernels.compiled import lamb, programs, rows, scratch
from tests.optim.compiled_pairs import needs_compiler, parameters, set_gradients

pytestmark = needs_compiler


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
from lightning_scale.optim.backends import choice
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


def test_no_warnings_and_no_settings_changed() -> None:
    before = torch._inductor.config.save_config_portable() if hasattr(torch._inductor, "config") else None
    params = parameters()
    set_gradients(params, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LAMB(params).step()
    if before is not None:
        assert torch._inductor.config.save_config_portable() == before


def test_options_are_in_the_types_of_inductors_version() -> None:
    """To torch 2.6, the word "off" would mean that products and sums may be contracted."""

    class Switches:
        class cpp:
            enable_floating_point_contract_flag = False
            dynamic_threads = False

    class Words(Switches):
        class cpp:
            enable_floating_point_contract_flag = "off"

    wanted = {key: programs._OPTIONS[key] for key in ("cpp.enable_floating_point_contract_flag", "cpp.dynamic_threads")}
    assert programs._as_known(Switches, wanted) == {
        "cpp.enable_floating_point_contract_flag": False,
        "cpp.dynamic_threads": True,
    }
    assert programs._as_known(Words, wanted) == {"cpp.enable_floating_point_contract_flag": "off"}
