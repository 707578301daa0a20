"""The time that Python takes for a step on a GPU, measured without one: no kernel runs, and torch's fused AdamW's neither.

On a fast GPU a step of a model of many tensors is as long as the longer of two times: the device's, and the host's, which is
measured here. Gradients lie at other addresses at every step, as those of a training loop may. Nothing is computed.

    python -m benchmarks.host_time
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # before kernels are imported: the steps of CPU tensors then go the way of a GPU's
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit

STEPS, WARM = 40, 5
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "torch AdamW(fused=True)": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "LAMB": lambda p: LAMB(p, lr=1e-3, fused=True),
    "LARS": lambda p: LARS(p, lr=1e-3, fused=True),
    "LAMB8bit": lambda p: LAMB8bit(p, lr=1e-3, fused=True),
    "LARS8bit": lambda p: LARS8bit(p, lr=1e-3, fused=True),
    "AdamW8bit": lambda p: AdamW8bit(p, lr=1e-3, fused=True),
}


def parameters(tensors: int, mesh: Any = None) -> list[torch.nn.Parameter]:
    """Matrices and vectors by turns, of so few elements that memory does not count; DTensors on a mesh."""
    torch.manual_seed(0)
    made = [torch.randn(8, 512) if i % 2 else torch.randn(8) for i in range(tensors)]
    if mesh is not None:
        from torch.distributed.tensor import Shard, distribute_tensor

        made = [distribute_tensor(t, mesh, [Shard(0)]) for t in made]
    return [torch.nn.Parameter(t) for t in made]


@contextmanager
def nothing_is_launched() -> Iterator[None]:
    """Within, kernels and torch's fused AdamW do nothing, after all of Python's work."""
    from lightning_scale.optim.backends.triton import launch

    original, fused = launch.launch, torch._fused_adamw_
    modules = [m for name, m in list(vars_of_backend().items()) if getattr(m, "launch", None) is original]

    def no_launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
        launch.launches += 1

    for module in modules:
        module.launch = no_launch
    torch._fused_adamw_ = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for module in modules:
            module.launch = original
        torch._fused_adamw_ = fused


def vars_of_backend() -> dict[str, Any]:
    """The modules of the Triton backend."""
    import sys

    return {name: m for name, m in sys.modules.items() if name.startswith("lightning_scale.optim.backends.triton.")}


def gradients(params: list[torch.nn.Parameter]) -> list[Tensor]:
    """New ones: what was there before is kept by the caller until these are made, so that addresses differ."""
    return [torch.zeros_like(p) for p in params]


def measure(names: list[str], tensors: int, mesh: Any = None) -> dict[str, list[float]]:
    """Milliseconds of steps, the optimizers by turns."""
    optimizers = {}
    for name in names:
        params = parameters(tensors, mesh)
        for p, g in zip(params, gradients(params), strict=True):
            p.grad = g
        optimizers[name] = (OPTIMIZERS[name](params), params)
    times: dict[str, list[float]] = {name: [] for name in names}
    with nothing_is_launched():
        for step in range(WARM + STEPS):
            for name, (optimizer, params) in optimizers.items():
                new = gradients(params)
                for p, g in zip(params, new, strict=True):
                    p.grad = g
                begin = time.perf_counter()
                optimizer.step()
                if step >= WARM:
                    times[name].append(1000 * (time.perf_counter() - begin))
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, nargs="*", default=[398, 5000])
    parser.add_argument("--only", nargs="*", default=list(OPTIMIZERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for tensors in options.tensors:
        _print(f"{tensors:,} tensors", measure(options.only, tensors))
    from torch.distributed.device_mesh import init_device_mesh

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29531")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    _print("398 DTensors", measure(options.only, 398, init_device_mesh("cpu", (1,))))
    torch.distributed.destroy_process_group()


def _print(what: str, times: dict[str, list[float]]) -> None:
    first = statistics.median(next(iter(times.values())))
    print(what)
    for name, seen in times.items():
        middle = statistics.median(seen)
        print(f"  {name:24} {middle:8.2f} ms  ({min(seen):.2f}-{max(seen):.2f})  {middle / first:6.2f}")


if __name__ == "__main__":
    main()
