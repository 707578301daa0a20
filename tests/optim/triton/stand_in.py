"""Triton's own launcher on a machine without a GPU: a stand-in for the driver, up to where a real one would run the kernel.

The interpreter calls a kernel as a Python function. A GPU's launch goes through a function that Triton writes for the kernel,
which binds and specializes the arguments, and through a look at all of its options; then it compiles. `bind_interpreted_launches`
puts every launch that is made through the interpreter through those, too, and `compiling_launches` through the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StandIn:
    """What Triton asks of a CUDA driver before it launches a kernel.

    Args:
        capability: Of the GPU: 90 for sm_90.
    """

    binary_ext = "cubin"

    def __init__(self, capability: int = 90) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> Any:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return int(self.target.arch)  # so that each target has kernels of its own

    def set_current_device(self, device: int) -> None: ...

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


@contextmanager
def driver_of(capability: int = 90) -> Iterator[None]:
    """Let a stand-in be Triton's driver."""
    from triton.runtime.driver import driver

    name = "_active" if hasattr(driver, "_active") else "active"  # Triton 3.2 has no property
    before = getattr(driver, name)
    setattr(driver, name, StandIn(capability))
    try:
        yield
    finally:
        setattr(driver, name, before)


class Launcher:
    """Triton's launcher of one kernel, for launches that go as far as the compiler.

    Args:
        interpreted: The kernel as the interpreter has it.
    """

    def __init__(self, interpreted: Any) -> None:
        from triton.runtime.jit import JITFunction

        options = getattr(interpreted, "kwargs", None)
        if options is None:  # Triton 3.2
            options = interpreted.rewriter.kwargs
        known = ("do_not_specialize", "do_not_specialize_on_alignment")
        self.kernel = JITFunction(interpreted.fn, **{name: options[name] for name in known if name in options})
        self.specialized: list[Any] = []
        """For each kernel that would be compiled: its types, constants and attributes, as the compiler gets them."""
        with driver_of():
            if hasattr(self.kernel, "device_caches"):
                self.kernel.device_caches[StandIn().get_current_device()]
            else:  # Triton 3.2
                from triton.compiler import make_backend

                self.kernel.create_binder(make_backend(StandIn().target))
        self.kernel.compile = self._note

    def _note(self, source: Any, **_: Any) -> object:
        constants = source.constants if hasattr(source, "constants") else source.constexprs
        self.specialized.append((source.signature, constants, source.attrs))
        return object()

    def bind(self, grid: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Raises whatever a launch with these arguments would raise before the kernel is compiled."""
        with driver_of():
            self.kernel.run(*args, grid=grid, warmup=True, **options)


_launchers: dict[Any, Launcher] = {}


def launchers() -> list[Launcher]:
    """Of all kernels that this process has launched."""
    return list(_launchers.values())


_running = True
bound = 0
"""Launches of this process that have been through `Launcher.bind`, for tests."""


def launcher_of(interpreted: Any) -> Launcher:
    """A kernel's launcher: one, so that a second launch of the same kind would not compile."""
    if interpreted not in _launchers:
        _launchers[interpreted] = Launcher(interpreted)
    return _launchers[interpreted]


@contextmanager
def bound_only() -> Iterator[None]:
    """Bind kernels and do not run them: what they would write stays as it is."""
    global _running
    _running = False
    try:
        yield
    finally:
        _running = True


def bind_interpreted_launches() -> None:
    """From now on, put every launch of this process that goes through the interpreter through Triton's launcher first."""
    from triton.runtime.interpreter import InterpretedFunction

    if getattr(InterpretedFunction.__getitem__, "binds", False):
        return
    launch = InterpretedFunction.__getitem__

    def bound_launch(kernel: Any, grid: Any) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            global bound
            launcher_of(kernel).bind(grid, args, options)
            bound += 1
            return launch(kernel, grid)(*args, **options) if _running else None

        return run

    bound_launch.binds = True  # type: ignore[attr-defined]
    InterpretedFunction.__getitem__ = bound_launch
