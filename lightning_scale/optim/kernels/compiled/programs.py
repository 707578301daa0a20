"""Functions over rows, compiled ahead of time by Inductor, once for all sizes, and kept on disk.

torch.export and AOTInductor rather than a torch.compile'd function: a call costs 14 µs instead of 40, there are no guards
that a user's autocast, thread count or 60th shape could trip, and another process loads the result in milliseconds,
without Dynamo and without a C++ compiler.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from getpass import getuser
from operator import attrgetter
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger("lightning_scale")

# Rows of the tensors that a function is traced with: any number but 0 and 1, which would be taken for constants.
_EXAMPLE_ROWS = 16
_OPTIONS: dict[str, Any] = {
    "cpp.dynamic_threads": True,  # else the number of threads at compile time is fixed
    "cpp.enable_floating_point_contract_flag": "off",  # a·b + c rounds twice, as the plain operations do
    "cpp.enable_unsafe_math_opt_flag": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.precompile_headers": False,  # 6 s, which two programs just earn back
}
# Instead of compiling a test for each instruction set, which takes seconds; what the compiler refuses is tried without.
_TRUST_CPU = {"cpp.vec_isa_ok": True}

Run = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Program:
    """A function to be compiled.

    Args:
        name: In the cache and in messages, with everything that `function` is made from.
        function: Takes tensors, changes some in place, returns a tuple of tensors.
        operands: (row width, dtype) of each argument with any number of rows; a tensor where an argument is always of
            this one's shape and dtype.
    """

    name: str
    function: Callable[..., tuple[Tensor, ...]]
    operands: tuple[tuple[int, torch.dtype] | Tensor, ...]


def load(wanted: Sequence[Program]) -> list[Run] | None:
    """The programs, ready to be called with no fewer than two rows; ``None`` where one cannot be compiled.

    The first call takes about ten seconds a program on a machine that has not seen it, with a line at INFO. What has
    failed once is not tried again in this process; the first failure brings a warning.
    """
    found = [_loaded(program.name, program) for program in wanted]
    return None if None in found else [run for run in found if run is not None]


_tried: dict[str, Run | None] = {}


def _loaded(name: str, program: Program) -> Run | None:
    if name not in _tried:
        # After one failure no other is tried: it would fail for the same reason, and take its time.
        _tried[name] = None if None in _tried.values() else _attempt(program)
    return _tried[name]


def _attempt(program: Program) -> Run | None:
    try:
        path = _path(program)
        if not path.exists():
            _build_once(program, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _quick(torch._inductor.aoti_load_package(str(path)))
    except Exception as error:
        reason = str(error).strip().splitlines()
        warnings.warn(
            "The optimizer's CPU kernels could not be compiled, so its steps run on plain torch operations, which take"
            f" longer: {type(error).__name__}: {reason[0] if reason else ''}. Install a C++ compiler (g++), or write"
            " fused=False for the plain operations and no warning.",
            stacklevel=2,
        )
        return None


def _quick(model: Any) -> Run:
    """Call the C++ loader itself where this version of torch lets us: the model's own call sorts arguments in Python."""
    boxed_run = getattr(getattr(model, "loader", None), "boxed_run", None)
    if boxed_run is None:
        return lambda *tensors: list(model(*tensors))
    return lambda *tensors: boxed_run(list(tensors))  # type: ignore[no-any-return]


def _build_once(program: Program, path: Path) -> None:
    """Compile, unless another process has done it meanwhile."""
    from filelock import FileLock  # torch's own requirement

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid") and path.parent.stat().st_uid != os.getuid():
        raise PermissionError(
            f"{path.parent} belongs to another user: set TORCHINDUCTOR_CACHE_DIR to a folder of yours"
        )
    with FileLock(f"{path}.lock"):
        if path.exists():
            return
        _log.info("Compiling the CPU kernel %s, once for this machine (about ten seconds).", program.name)
        begin = time.perf_counter()
        partial = path.with_suffix(f".{os.getpid()}.pt2")
        try:
            try:
                _build(program, partial, _OPTIONS | _TRUST_CPU)
            except Exception:
                _build(program, partial, _OPTIONS)
            os.replace(partial, path)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()
        _log.info("Compiled %s in %.1f s; kept in %s.", program.name, time.perf_counter() - begin, path.parent)


class _Module(nn.Module):
    """torch.export takes modules."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.function(*tensors)


def _build(program: Program, path: Path, options: dict[str, Any]) -> None:
    from torch._inductor import config

    rows = torch.export.Dim("rows", min=2)
    examples = tuple(
        o if isinstance(o, Tensor) else torch.ones(_EXAMPLE_ROWS, o[0], device="cpu").to(o[1]) for o in program.operands
    )
    dynamic = tuple(None if isinstance(o, Tensor) else {0: rows} for o in program.operands)
    with torch.no_grad(), torch.autocast("cpu", enabled=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about itself
        exported = torch.export.export(_Module(program.function), examples, dynamic_shapes=(dynamic,), strict=False)
        torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(path),
            inductor_configs=_as_known(config, options),
        )


def _as_known(config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options that this version of Inductor has, in its own types: some were switches before they were words."""
    found = {}
    for key, value in options.items():
        with suppress(AttributeError):
            present = attrgetter(key)(config)
            found[key] = value != "off" if isinstance(present, bool) and isinstance(value, str) else value
    return found


def _path(program: Program) -> Path:
    """Where a program is kept: another file for other source, torch, or processor."""
    key = hashlib.sha256(f"{program.name} {_surroundings()}".encode()).hexdigest()[:16]
    return cache_folder() / f"{program.name}-{key}.pt2"


def cache_folder() -> Path:
    """Inductor's cache folder, in a corner of its own."""
    user = re.sub(r'[\\/:*?"<>|]', "_", getuser())
    root = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or f"{gettempdir()}/torchinductor_{user}"
    return Path(root) / "lightning_scale"


@cache
def _surroundings() -> str:
    """All that compiled code depends on beside the program's name."""
    sources = [p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))]
    sources.append((Path(__file__).parents[2] / "codec" / "tables.py").read_bytes())
    processor = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {processor} {b''.join(sources)!r}"
