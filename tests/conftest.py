"""Quiet, single-threaded runs, and GPU tests that skip where there is no GPU."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: the kernels then run on CPU tensors

import logging
import warnings
from importlib.util import find_spec

import pytest
import torch

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-deepspeed", action="store_true", help="fail where DeepSpeed is not installed, instead of skipping"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-deepspeed") and find_spec("deepspeed") is None:
        raise pytest.UsageError("DeepSpeed is not installed, and --require-deepspeed asks for the tests of ZeRO.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if find_spec("deepspeed") is None:
        terminalreporter.write_line("DeepSpeed is not installed: the tests of ZeRO were skipped.", yellow=True)
