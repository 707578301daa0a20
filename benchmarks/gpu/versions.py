"""Where a session runs: devices, versions, and what is not installed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.contestants import everyone
from benchmarks.measure.environment import environment

_OTHERS = ("lightning", "numpy", "transformers", "matplotlib", "jsonargparse")
_OF_TESTS = ("pytest", "pytest-xdist", "pytest-timeout", "hypothesis")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    device = torch.device(parser.parse_args(arguments).device)
    found = environment(device, [*_OTHERS, *_OF_TESTS, *(c.package for c in everyone())])
    versions = found.pop("versions")
    for name, value in found.items():
        print(f"{name}: {' | '.join(str(value).splitlines())}")
    if device.type == "cuda":
        for number in range(torch.cuda.device_count()):
            print(f"cuda:{number}: {torch.cuda.get_device_properties(number)}")
    print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    print("not installed: " + ", ".join(name for name, version in versions.items() if not version))


if __name__ == "__main__":
    main()
