"""The report names what the configuration does, and its JSON holds what the text shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.optim import LAMB
from lightning_scale.plan.communication import Link
from lightning_scale.plan.comparison import Machine
from lightning_scale.plan.configured import Configured, configured, refusals
from lightning_scale.plan.rehearsal import Rehearsed, rehearse
from lightning_scale.plan.report import Timing, report
from lightning_scale.plan.text import parse_size, size
from tests.toys import Net, Vectors

ELEMENTS = 8 * 16 + 16 + 16 + 1


def found() -> Rehearsed:
    with torch.device("meta"):
        model = Net(lambda module: LAMB(module.named_parameters(), lr=0.1))
    return rehearse(model, Vectors(5), [GradientAccumulation(20)], {"max_epochs": 2}, 2)


def test_json_holds_every_part() -> None:
    timing = Timing(Link(1e-5, 1e9), 0.5)
    text = report(found(), configured("ddp", "32-true"), Machine(2, 2, 10**9), timing, as_json=True)
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


def test_text_marks_the_configured_strategy_and_what_does_not_fit() -> None:
    text = report(found(), configured("auto", None), Machine(2, 2, 1000), None, as_json=False)
    assert "> ddp" in text and "does not fit" in text
    assert "The model does not fit: ddp keeps" in text
    assert "Left out: activations" in text


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


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (999, "999 B"), (24e9, "24.0 GB"), (1.5e6, "1.50 MB")])
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


def test_sizes_are_read() -> None:
    assert parse_size("80GB", "x") == 80 * 10**9
    assert parse_size("1.5 GiB", "x") == 3 * 2**29
    for wrong in ("80", "GB", "-1GB", "80 giga", "0GB"):
        with pytest.raises(ValueError, match="such as"):
            parse_size(wrong, "x")
