"""Published figures, and the model's formula worked out by hand."""

from __future__ import annotations

import pytest

from lightning_scale.plan.communication import Link, Traffic, efficiency, seconds, steps_for, traffic

RESNET_50 = 25.5e6 * 4  # bytes
IMAGES = 90 * 1.28 * 2**20
"""90 epochs of 1.28 M images, M read as 2^20: that is how 3.6 M messages at 32 become 3,686 at 32,768, 1,024 times fewer."""


@pytest.mark.parametrize(("batch", "messages", "unit"), [(32, 3.6 * 2**20, 1024e9), (32_768, 3_686, 1e9)])
def test_resnet_50(batch: int, messages: float, unit: float) -> None:
    steps = steps_for(IMAGES, batch)
    sent = traffic("ddp", RESNET_50)
    assert int(steps * sent.messages) == int(messages)
    # Published: 374 (TB, of 1,024 GB, and GB). 25.5 M float32 weights give 376; 374 are 25.4 M.
    assert steps * sent.bytes / unit == pytest.approx(374, rel=0.006)


def test_time_by_hand() -> None:
    link = Link(latency=1e-5, bandwidth=1e10)
    sent = traffic("ddp", 1e8)
    assert seconds(sent, 8, link) == pytest.approx(3 * (1e-5 + 0.01))
    assert seconds(sent, 1, link) == 0
    assert efficiency(sent, 1, link, 0.1) == 1
    assert efficiency(sent, 8, link, 0.1) == pytest.approx(0.1 / 0.13003)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ddp", Traffic(1, 100)),
        ("zero1_offload", Traffic(2, 100)),
        ("zero2", Traffic(5, 250)),
        ("zero3", Traffic(12, 600)),
        ("fsdp2", Traffic(12, 600)),
    ],
)
def test_what_four_micro_batches_send(strategy: str, expected: Traffic) -> None:
    assert traffic(strategy, 100, 4) == expected


def test_stage_3_sends_half_more_than_ddp() -> None:
    """Rajbhandari et al. 2019, section 7: 3 Ψ against 2 Ψ."""
    assert traffic("zero3", 2.0).bytes / traffic("ddp", 2.0).bytes == 1.5
    assert traffic("zero2", 2.0).bytes == traffic("ddp", 2.0).bytes
