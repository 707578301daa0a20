"""Who is named, for what, and how often."""

from __future__ import annotations

from lightning_scale.monitoring import RatioWarnings

NO_CLIP = {"a": None, "b": None}


def test_a_layer_that_leaves_the_band_is_named_once() -> None:
    warnings = RatioWarnings(band=(0.01, 1.0))
    assert warnings.check(1, {"a": 0.01, "b": 1.0}, NO_CLIP) == []
    assert warnings.check(2, {"a": 0.5, "b": 1.5}, NO_CLIP) == [
        "step 2: the trust ratio of b (1.5) is outside of the band 0.01 to 1."
    ]
    assert warnings.check(3, {"a": 0.5, "b": 2.0}, NO_CLIP) == []
    assert warnings.check(4, {"a": 0.009, "b": 2.0}, NO_CLIP) == [
        "step 4: the trust ratio of a (0.009) is outside of the band 0.01 to 1."
    ]


def test_one_is_a_cause_after_some_looks_in_a_row_only() -> None:
    warnings = RatioWarnings(patience=3)
    said = [
        warnings.check(k, {"a": ratio, "b": 0.5}, NO_CLIP)
        for k, ratio in enumerate([1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0])
    ]
    assert [len(sentences) for sentences in said] == [0, 0, 0, 0, 0, 1, 0]
    assert said[5] == [
        "step 5: the trust ratio of a is 1 for 3 looks in a row, as it is where weights or update are all zero."
    ]


def test_a_bound_of_the_clip_is_called_so_also_where_it_is_one() -> None:
    warnings = RatioWarnings(patience=2)
    clips = {"a": (0.5, 1.0), "b": (0.5, 10.0)}
    assert warnings.check(1, {"a": 1.0, "b": 0.5}, clips) == []
    assert warnings.check(2, {"a": 1.0, "b": 0.5 + 1e-8}, clips) == [
        "step 2: the trust ratio of b is at the lower bound of its clip, 0.5, for 2 looks in a row.",
        "step 2: the trust ratio of a is at the upper bound of its clip, 1, for 2 looks in a row.",
    ]


def test_many_layers_are_counted() -> None:
    ratios = {f"layer{i}": 9.0 for i in range(8)}
    (said,) = RatioWarnings(band=(0, 1)).check(1, ratios, dict.fromkeys(ratios))
    assert "layer4 (9) and 3 more is outside" in said
    assert "layer5" not in said


def test_a_resumed_run_goes_on_counting_and_does_not_repeat_itself() -> None:
    first = RatioWarnings(band=(0.1, 2.0), patience=3)
    first.check(1, {"a": 1.0, "b": 3.0}, NO_CLIP)
    first.check(2, {"a": 1.0, "b": 3.0}, NO_CLIP)
    second = RatioWarnings(band=(0.1, 2.0), patience=3)
    second.load_state_dict(first.state_dict())
    (said,) = second.check(3, {"a": 1.0, "b": 3.0}, NO_CLIP)
    assert "of a is 1 for 3 looks" in said
