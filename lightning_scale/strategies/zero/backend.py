"""DeepSpeed's process group on CPUs, without a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Within, a CPU process group begins without compiling DeepSpeed's shared-memory all-reduce.

    That takes a C++ compiler and a minute or two on every machine, each rank waiting for the others, and serves inference
    alone (``inference_all_reduce``, which otherwise asks torch).
    """
    backend: Any = import_module("deepspeed.comm.torch")  # (deepspeed.comm also has torch itself by that name)
    build = getattr(backend, "build_shm_op", None)
    if build is None:  # another version
        yield
        return
    backend.build_shm_op = lambda: None
    try:
        yield
    finally:
        backend.build_shm_op = build
