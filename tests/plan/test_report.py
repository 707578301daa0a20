"""The report names what the configuration does, and its JSON holds what the text shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.optim import LAMB
from lightning_scale.plan.activations import measure
from lightning_scale.plan.communication import Link
from lightning_scale.plan.configuration import Configured, Machine, configured, refusals
from lightning_scale.plan.dry_run import DryRun, dry_run
from lightning_scale.plan.formatting import parse_size, size
from lightning_scale.plan.report import report
from lightning_scale.plan.scale_up import Timing
from tests.toys import Net, Vectors

ELEMENTS = 8 * 16 + 16 + 16 + 1


def found() -> DryRun:
    with torch.device("meta"):
        model = Net(lambda module: LAMB(module.named_parameters(), lr=0.1))
    return dry_run(model, Vectors(5), [GradientAccumulation(20)], {"max_epochs": 2}, 2, read_samples=True)


def said(configured: Configured, machine: Machine, timing: Timing | None, as_json: bool) -> str:
    run = found()
    measured = measure(run, configured)
    return report(run, configured, machine, timing, measured, as_json=as_json)


def test_json_holds_every_part() -> None:
    timing = Timing(Link(1e-5, 1e9), 0.5)
    text = said(configured("ddp", "32-true", "cpu"), Machine(2, 2, 10**9), timing, as_json=True)
    content = json.loads(text)
    assert content["memory"]["parameters"] == ELEMENTS
    held = content["memory"]["strategies"]["ddp"]["device"]
    assert (held["parameters"], held["gradients"], held["buckets"]) == (4 * ELEMENTS,) * 3
    assert held["optimizer"] == 8 * ELEMENTS + 4 * 4  # and a step count for each of four tensors
    ddp = content["communication"][0]
    assert ddp["strategy"] == "ddp" and ddp["step"] == {"messages": 1, "bytes": 4 * ELEMENTS}
    assert ddp["epoch"] == pytest.approx({"messages": 5, "bytes": 20 * ELEMENTS})
    assert ddp["run"] == {"messages": 10, "bytes": 40 * ELEMENTS}
    assert [row["nodes"] for row in content["scaling"]] == [1, 2, 4]
    assert content["scaling"][0]["exchange"] == pytest.approx(1e-5 + 4 * ELEMENTS / 1e9)
    assert content["scaling"][0]["compute"] == 1.0  # two micro-batches of half a second
    assert [row["batch_size"] for row in content["larger_batches"]] == [20, 40, 80]
    (traced,) = content["activations"]["traced"]
    assert traced["micro_batch_size"] == 5 and content["activations"]["left_out"] is None
    states = content["memory"]["strategies"]["ddp"]
    (fits,) = states["micro_batches"]
    assert fits["left"] == 10**9 - states["device"]["total"] - traced["bytes"] and fits["fits"]
    assert fits["largest"] == (states["left"] - traced["fixed"]) // traced["per_sample"]


def test_text_marks_the_configured_strategy_and_what_does_not_fit() -> None:
    text = said(configured("auto", None), Machine(2, 2, 1000), None, as_json=False)
    assert "> ddp" in text and "does not fit" in text
    assert "The model does not fit: ddp keeps" in text


def test_text_names_a_micro_batch_that_does_not_fit() -> None:
    states = ELEMENTS * 4 * 5 + 4 * 4  # with DDP's buckets, and a step count for each tensor
    text = said(configured("auto", None), Machine(2, 2, states + 500), None, as_json=False)
    assert "- The micro-batch does not fit: 5 samples take " in text and "; the largest is " in text
    assert "(less than asked for)" in text and "The model does not fit" not in text


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("ddp_find_unused_parameters_true", "ddp"),
        ("zero2_offload", "zero2_offload"),
        ("fsdp", None),
        ({"class_path": "lightning_scale.strategies.ZeROStrategy", "init_args": {"stage": 3}}, "zero3"),
        ({"class_path": "lightning_scale.strategies.FSDP2Strategy", "init_args": {"replicas": 2}}, "fsdp2"),
        ({"class_path": "lightning.pytorch.strategies.DDPStrategy"}, "ddp"),
    ],
)
def test_the_configured_strategy(strategy: Any, name: str | None) -> None:
    assert configured(strategy, "32").strategy == name


def test_an_optimizer_that_zero_refuses() -> None:
    class Lamb(torch.optim.SGD):
        pass

    parameter = torch.nn.Parameter(torch.zeros(2))
    (sentence,) = refusals(Configured("zero1", "bf16-mixed"), [Lamb([parameter])])
    assert sentence.startswith("This strategy will not run:") and "whole layers" in sentence
    assert refusals(Configured("ddp", "bf16-mixed"), [Lamb([parameter])]) == []
    assert len(refusals(Configured("zero1", "16-mixed"), [])) == 1


def test_what_else_zero_refuses() -> None:
    lamb = LAMB([("w", torch.nn.Parameter(torch.zeros(2)))], lr=0.1, max_grad_norm=1.0)
    (clips,) = refusals(configured("zero2", "32", clip=0.5), [lamb])
    assert "keep one of the two" in clips
    assert refusals(configured("zero2", "32"), [lamb]) == refusals(configured("ddp", "32", clip=0.5), [lamb]) == []
    options = {"stage": 3, "offload_optimizer": "nvme"}
    zero: dict[str, Any] = {"class_path": "lightning_scale.strategies.ZeROStrategy", "init_args": options}
    (nvme,) = refusals(configured(zero, "32"), [lamb])
    assert "allow_unverified_nvme=True" in nvme and configured(zero, "32").strategy == "zero3_offload"
    options["allow_unverified_nvme"] = True
    assert refusals(configured(zero, "32"), [lamb]) == []


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (999, "999 B"), (24e9, "24.0 GB"), (1.5e6, "1.50 MB")])
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


def test_sizes_are_read() -> None:
    assert parse_size("80GB", "x") == 80 * 10**9
    assert parse_size("1.5 GiB", "x") == 3 * 2**29
    for wrong in ("80", "GB", "-1GB", "80 giga", "0GB"):
        with pytest.raises(ValueError, match="such as"):
            parse_size(wrong, "x")
