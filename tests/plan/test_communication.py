"""Published figures, and the model's formula worked out by hand."""

from __future__ import annotations

import pytest

from lightning_scale.plan.communication import Link, Traffic, efficiency, seconds, steps_for, traffic


def resnet_50(images: float, weights: float, batch: int) -> tuple[float, float]:
    """Messages and bytes of 90 epochs."""
    steps, sent = steps_for(90 * images, batch), traffic("ddp", 4 * weights)
    return steps * sent.messages, steps * sent.bytes


MEGA, GIGA, TERA = 2.0**20, 2.0**30, 2.0**40


@pytest.mark.parametrize(
    ("batch", "messages", "published", "unit"), [(32, 3.6 * MEGA, 374, TERA), (32_768, 3_686, 374, GIGA)]
)
def test_the_published_line(batch: int, messages: float, published: int, unit: float) -> None:
    """You et al. 2017, from 1.28 M images and 26 M weights: 3.6 M and 3,686 messages, 374 TB and 374 GB.

    M, G and T are powers of 2: 3.6 M messages in all, of 104 MB, and 1,024 times fewer of them.
    """
    sent, volume = resnet_50(1.28 * MEGA, 26 * MEGA, batch)
    assert int(sent) == int(messages)
    assert int(volume / unit) == published


def test_the_first_half_of_it_in_powers_of_10() -> None:
    messages, volume = resnet_50(1.28e6, 26e6, 32)
    assert (messages, volume) == pytest.approx((3.6e6, 374.4e12))
    assert resnet_50(1.28e6, 26e6, 32_768)[0] == pytest.approx(3515.6, rel=1e-4)  # not the published 3,686


def test_resnet_50_as_it_is() -> None:
    """25,557,032 weights, 1,281,167 images."""
    assert resnet_50(1_281_167, 25_557_032, 32) == pytest.approx((3_603_282, 368.36e12), rel=1e-4)
    assert resnet_50(1_281_167, 25_557_032, 32_768) == pytest.approx((3_518.8, 359.73e9), rel=1e-4)


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
