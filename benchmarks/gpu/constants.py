"""A search of the kernels' constants: each is changed in memory, timed, and put back."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from benchmarks.contestants.contestant import Contestant
from benchmarks.gpu.bench import Bench, Options, each_apart, in_one_line, milliseconds
from lightning_scale.optim.registry import REGISTRY

NAMES = ("LAMB fused=True", "LARS fused=True", "AdamW8bit fused=True", "LAMB8bit fused=True")
_KERNELS = "lightning_scale.optim.backends.triton"
_AS_THEY_ARE = "as they are"

Changes = Mapping[str, Callable[[Any], Any]]
"""By a dotted path from the folder of kernels: what takes the place of what is there."""


@dataclass(frozen=True)
class Trial:
    """Constants with other values.

    Args:
        kind: What is changed; the best of each kind are tried together in the end.
        value: The new value, in words.
        changes: What is to be set.
    """

    kind: str
    value: str
    changes: Changes

    @property
    def name(self) -> str:
        """What its row is called."""
        return f"{self.kind} {self.value}".strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: for each optimizer a row for each trial, and the best. 1 where one could not be timed as it is."""
    options = Options.parsed(arguments, __doc__, NAMES)
    return 0 if each_apart(options, partial(search, options)) else 1


def trials(name: str) -> list[Trial]:
    """What is tried with an optimizer's kernels; the quickest to try first."""
    entry = REGISTRY[name.partition(" ")[0]]
    if entry.eight_bit:
        chunks = [Trial("chunk", f"2^{k}", {"chunks.QUANTIZED_CHUNK": _to(1 << k)}) for k in (12, 13, 14, 11, 15)]
        pairs = ((1, 1), (1, 2), (2, 2), (2, 1), (4, 4), (4, 2))
        return chunks + [
            Trial("warps, rows", f"{w}, {r}", {"launch.WARPS": _to(w), "launch.ROWS": _to(r)}) for w, r in pairs
        ]
    return [
        *(Trial("lag", f"2^{k}", {"turns.order_of.__defaults__": _to((1 << k,))}) for k in (20, 19, 21, 18, 22)),
        *(Trial("chunk", f"2^{k}", {f"{entry.algorithm}.ORDERED_CHUNK": _to(1 << k)}) for k in (12, 11, 13, 14)),
        *(Trial("warps", f"{w}", {f"{entry.algorithm}.launch": partial(_with_warps, w)}) for w in (8, 2)),
        *(Trial("block", f"{b}", {f"{entry.algorithm}.block": _to(lambda b=b: b)}) for b in (2048, 512, 4096)),
    ]


def search(options: Options, contestant: Contestant, seconds: float) -> bool:
    """Time an optimizer's trials, print them and the best; no trial begins after ``seconds``."""
    ends = time.monotonic() + seconds
    bench, found = Bench(options), dict[str, float]()
    print(contestant.name, flush=True)

    def timed(trial: Trial) -> None:
        try:
            with changed(trial.changes):
                found[trial.name] = _time(bench, contestant)
            print(f"  {trial.name:44} {found[trial.name]:8.3f} ms", flush=True)
        except Exception as error:  # A value that a kernel cannot take, or a constant that is no more.
            print(f"{contestant.name}, {trial.name}: FAILS: {in_one_line(error)}", flush=True)

    timed(Trial(_AS_THEY_ARE, "", {}))
    best: dict[str, Trial] = {}
    for trial in trials(contestant.name):
        if time.monotonic() > ends:
            print("  (no time for the others)", flush=True)
            break
        timed(trial)
        known = best.get(trial.kind)
        limit = found[known.name] if known else found.get(_AS_THEY_ARE, float("inf"))
        if found.get(trial.name, float("inf")) < limit:
            best[trial.kind] = trial
    if len(best) > 1:
        merged = {path: value for trial in best.values() for path, value in trial.changes.items()}
        timed(Trial("", "; ".join(trial.name for trial in best.values()), merged))
    if found:
        first = found.get(_AS_THEY_ARE)
        for name, taken in sorted(found.items(), key=lambda item: item[1])[:3]:
            beside = f", {taken / first:.2f} of as they are" if first else ""
            print(f"best of {contestant.name}: {name}: {taken:.3f} ms{beside}", flush=True)
    return _AS_THEY_ARE in found


@contextmanager
def changed(changes: Changes) -> Iterator[None]:
    """Put other values in, and the old ones back in the end.

    Raises:
        AttributeError: for what is not there.
    """
    before: list[tuple[Any, str, Any]] = []
    try:
        for path, change in changes.items():
            holder, name = holder_of(path)
            old = getattr(holder, name)
            before.append((holder, name, old))
            setattr(holder, name, change(old))
        yield
    finally:
        for holder, name, old in reversed(before):
            setattr(holder, name, old)


def holder_of(path: str) -> tuple[Any, str]:
    """What has the last part of a path as an attribute, and that part."""
    module, *inner, name = path.split(".")
    return reduce(getattr, inner, importlib.import_module(f"{_KERNELS}.{module}")), name


def _time(bench: Bench, contestant: Contestant) -> float:
    optimizer = bench.optimizer(contestant)
    optimizer.step()
    return milliseconds(bench.on_device({"step": optimizer.step})["step"])


def _to(value: Any) -> Callable[[Any], Any]:
    return lambda old: value


def _with_warps(warps: int, launch: Callable[..., None]) -> Callable[..., None]:
    return partial(launch, num_warps=warps)


if __name__ == "__main__":
    sys.exit(main())
