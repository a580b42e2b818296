"""The bootstrap against a plain loop, against the normal approximation, and its errors."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import MetricError
from safe.evaluation import bootstrap as module
from safe.evaluation.bootstrap import Difference, bootstrap_interval, paired_difference

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(VALUES, st.integers(0, 5))
def test_interval_is_the_plain_loop(values: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = [
        np.mean([values[i] for i in rng.integers(0, len(values), size=len(values))])
        for _ in range(200)
    ]
    expected = np.percentile(means, [5, 95])
    got = bootstrap_interval(values, n_resamples=200, seed=seed, level=0.9)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_interval_is_near_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(50, 20, size=900)
    low, high = bootstrap_interval(values, n_resamples=4000)
    half = 1.96 * values.std() / math.sqrt(900)
    # The quantile of 4,000 resamples itself moves by about 3% of the half width.
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.exponential(1.0, size=(300, 80))  # skewed, like per-clip CIDEr
    intervals = [bootstrap_interval(sample, n_resamples=300, level=0.9) for sample in samples]
    covered = sum(low <= 1.0 <= high for low, high in intervals)
    assert 0.84 < covered / 300 < 0.94


def test_blocks_draw_what_one_block_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    at_once = bootstrap_interval(values)
    monkeypatch.setattr(module, "_BLOCK", 120)
    assert bootstrap_interval(values) == at_once


def test_same_seed_same_interval_and_equal_values_have_no_width() -> None:
    values = np.arange(20.0)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert bootstrap_interval([2.5] * 10) == (2.5, 2.5)


def test_pairing_finds_a_difference_that_the_clips_spread_hides() -> None:
    rng = np.random.default_rng(0)
    clips = rng.normal(50, 30, size=200)
    better = clips + 2 + rng.normal(0, 1, size=200)
    found = paired_difference(better, clips)
    assert found.mean == pytest.approx((better - clips).mean())
    assert found.low < found.mean < found.high
    assert found.significant
    assert not paired_difference(clips, better).significant
    # The two separate intervals overlap widely.
    assert bootstrap_interval(clips)[1] > bootstrap_interval(better)[0]


def test_a_written_difference_says_whether_it_is_significant() -> None:
    assert asdict(Difference(mean=2.0, low=0.5, high=3.0)) == {
        "mean": 2.0,
        "low": 0.5,
        "high": 3.0,
        "significant": True,
    }


def test_no_difference_is_not_significant() -> None:
    same = [1.0, 2.0, 3.0]
    found = paired_difference(same, same)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.significant


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, math.nan], r"values\[1\] is nan; every clip needs a finite score"),
        ([math.inf, 1.0], r"values\[0\] is inf"),
        ([], r"at least two numbers, one per clip; got shape \(0,\)"),
        ([1.0], r"at least two numbers, one per clip; got shape \(1,\)"),
        ([[1.0, 2.0]], r"got shape \(1, 2\)"),
    ],
)
def test_values_without_an_interval(values: list[float], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        bootstrap_interval(values)


def test_impossible_settings_and_unpaired_values() -> None:
    with pytest.raises(MetricError, match="n_resamples must be at least 1, got 0"):
        bootstrap_interval([1.0, 2.0], n_resamples=0)
    with pytest.raises(MetricError, match="level must lie strictly between 0 and 1, got 95"):
        bootstrap_interval([1.0, 2.0], level=95)
    with pytest.raises(MetricError, match=r"same clips on both sides, got 2 and 3 values"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(MetricError, match=r"b\[0\] is nan"):
        paired_difference([1.0, 2.0], [math.nan, 2.0])
