"""Compile the Triton kernels for GPUs on a machine without one, and say what came out, as JSON on stdout.

Every launch of a step on CPU tensors is caught, and its kernel compiled for the targets with the types and constants that
it was launched with. Run as a program, without TRITON_INTERPRET: `python -m tests.optim.compile_for_gpu LAMB LARS ...`.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.optim.offline import CAPABILITIES, look

_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


def compiled(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], capability: int) -> dict[str, Any]:
    """One kernel for one target: what ptxas says of it, and how often its PTX has each kind of instruction."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    given = {**dict(zip(names, args, strict=False)), **{k: v for k, v in options.items() if k in names}}
    signature, constants, aligned = {}, {}, []
    for place, name in enumerate(names):
        value = given[name]
        if kernel.params[place].is_constexpr:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            aligned.append(place)
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    chosen = {k: v for k, v in options.items() if k not in names}
    if "constexprs" in inspect.signature(ASTSource).parameters:
        attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
        source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    else:  # Triton 3.2
        from triton.backends.compiler import AttrsDescriptor

        others = {name: kind for name, kind in signature.items() if kind != "constexpr"}
        source = ASTSource(kernel, others, constants, AttrsDescriptor.from_hints(dict.fromkeys(aligned, 16)))
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=chosen)
    return {
        "kernel": f"{Path(sys.modules[kernel.fn.__module__].__file__ or '').stem}.{kernel.fn.__name__}",
        "capability": capability,
        **look(result),
    }


def launches_of(name: str, **options: Any) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """(kernel, arguments, options) of every launch of one step of an optimizer."""
    from triton.runtime.jit import JITFunction

    from lightning_scale import optim
    from lightning_scale.optim.kernels import choice
    from lightning_scale.optim.kernels.fused import launch  # keeps the block of a GPU: imported before the next lines

    seen: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def catch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        seen.append((self, args, kwargs))

    assert launch.block() == 1024
    run, interpreted = JITFunction.run, choice.interpreted
    JITFunction.run, choice.interpreted = catch, lambda: True
    try:
        dtype = options.pop("dtype", torch.float32)
        p = nn.Parameter(torch.ones(64, 128, dtype=dtype))
        p.grad = torch.ones_like(p)
        optimizer = getattr(optim, name)([p], lr=0.1, fused=True, **options)
        device_guard(optimizer)
        optimizer.step()
    finally:
        JITFunction.run, choice.interpreted = run, interpreted
    return seen


def device_guard(optimizer: Any) -> None:
    """Decide as on a device, where the host does not look: the kernels are then given the test and the clip."""
    from lightning_scale.optim.kernels.work import Guard

    decide = type(optimizer)._decide

    def decided(gathered: Any) -> Any:
        decide(optimizer, gathered)
        return Guard(torch.ones((), dtype=torch.bool), torch.ones(()) if optimizer.max_grad_norm else None)

    optimizer._decide = decided


CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "LAMB": [
        ("LAMB", {"max_grad_norm": 1.0}),
        ("LAMB", {"dtype": torch.bfloat16, "master_weights": True}),
    ],
    "LARS": [
        ("LARS", {"weight_decay": 0.1}),
        ("LARS", {"trust_norm": "momentum", "dtype": torch.bfloat16, "master_weights": True}),
        ("LARS", {"nesterov": True, "lr_in_momentum": False, "max_grad_norm": 1.0}),
    ],
}


def main() -> None:
    kernels: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}
    for family in sys.argv[1:]:
        for name, options in CASES[family]:
            for kernel, args, given in launches_of(name, **options):
                constants = {k: str(v) for k, v in given.items()}
                kernels[f"{kernel.fn.__module__}.{kernel.fn.__name__}{sorted(constants.items())}"] = (
                    kernel,
                    args,
                    given,
                )
    print(json.dumps([compiled(*launch, capability) for launch in kernels.values() for capability in CAPABILITIES]))


if __name__ == "__main__":
    main()
