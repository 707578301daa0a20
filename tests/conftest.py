"""Quiet, single-threaded runs on CPUs, also on machines that have a GPU; there `-m gpu` runs the tests that need one instead.

A process has Triton's interpreter or its compiler, so the two kinds of tests do not share one.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from importlib.util import find_spec

import pytest
import torch

from tests.optim.triton.stand_in import bind_interpreted_launches

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-deepspeed", action="store_true", help="fail where DeepSpeed is not installed, instead of skipping"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"  # before kernels are imported: they then run on CPU tensors
        if find_spec("triton") is not None:
            bind_interpreted_launches()
    if config.getoption("--require-deepspeed") and find_spec("deepspeed") is None:
        raise pytest.UsageError("DeepSpeed is not installed, and --require-deepspeed asks for the tests of ZeRO.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and -m gpu: make gpu"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if find_spec("deepspeed") is None:
        terminalreporter.write_line("DeepSpeed is not installed: the tests of ZeRO were skipped.", yellow=True)
