"""Every cheap statistic against plain NumPy in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probes.norms import SINK_RATIO, precise_norm, token_norms
from probes.record import RecordLog, Rows
from probes.signal_tokens import MeanCosine, SignalTokens, as_tokens
from probes.statistics import TokenPool, report_pools

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Norms accumulate in float32 over up to 600 elements: worst seen 2e-6.
CLOSE = 1e-5


def _random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _report(pool: TokenPool) -> dict[str, float]:
    rows = Rows("test", 0)
    report_pools(rows, "text", {3: pool})
    assert {(r.component, r.layer) for r in rows.records} == {("text", 3)}
    return {r.statistic: r.value for r in rows.records}


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4), st.integers(1, 9), st.sampled_from((1, 3, 16, 600)),
    st.sampled_from(DTYPES), st.integers(0, 10**6), st.floats(0, 1), st.integers(0, 2),
)  # fmt: skip
def test_pool_against_numpy(
    batch: int, length: int, width: int, dtype: torch.dtype, seed: int, keep: float, sinks: int
) -> None:
    rng = np.random.default_rng(seed)
    hidden = _random((2, batch, length, width), seed, dtype)
    for _ in range(sinks):
        hidden[rng.integers(2), rng.integers(batch), rng.integers(length), 0] = 3e3
    mask = rng.random((2, batch, length)) < keep
    pool = TokenPool()
    for part, chosen in zip(hidden, mask, strict=True):
        pool.add(token_norms(part), np.flatnonzero(chosen))
    found = _report(pool)

    plain = hidden.double().numpy()[mask]
    l2 = np.sqrt((plain**2).sum(-1))
    sink = np.abs(plain).max(-1, initial=0) >= SINK_RATIO * np.sqrt((plain**2).mean(-1))
    assert found["tokens"] == mask.sum()
    assert found["excluded"] == (~mask).sum()
    assert found["sinks"] == sink.sum()
    assert found["nonfinite"] == 0
    assert ("l2_median" in found) == bool((~sink).any())
    expected = {}
    if sink.any():
        expected["sink_l2_median"] = np.median(l2[sink])
    if (~sink).any():
        own = l2[~sink]
        expected |= {
            "l2_p5": np.percentile(own, 5),
            "l2_median": np.median(own),
            "l2_p95": np.percentile(own, 95),
            "rms_median": np.median(np.sqrt((plain[~sink] ** 2).mean(-1))),
            "max_abs": np.abs(plain[~sink]).max(),
            "l2_mean": own.mean(),
            "l2_mean_with_sinks": l2.mean(),
            "sink_inflation": l2.mean() / own.mean(),
        }
    for name, value in expected.items():
        assert found.pop(name) == pytest.approx(value, rel=CLOSE), name
    assert set(found) == {"tokens", "excluded", "sinks", "nonfinite"}


def test_a_sink_is_apart_and_its_inflation_named() -> None:
    hidden = torch.full((1, 10, 576), 4.0)
    hidden[0, 0] = 0.1
    hidden[0, 0, 7] = 25_000.0
    pool = TokenPool()
    pool.add(token_norms(hidden))
    found = _report(pool)
    assert found["sinks"] == 1
    assert found["l2_median"] == 96.0
    assert found["l2_mean_with_sinks"] == pytest.approx((9 * 96 + 25_000) / 10, rel=1e-6)
    assert found["sink_inflation"] == pytest.approx((9 * 96 + 25_000) / 960, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_tokens_neither_vanish_nor_overflow(scale: float, dtype: torch.dtype) -> None:
    hidden = (_random((2, 3, 8), 0) * scale).to(dtype)
    hidden[1] = 1.0
    norms = token_norms(hidden)
    expected = np.linalg.norm(hidden.double().numpy(), axis=-1)
    assert norms.l2 == pytest.approx(expected, rel=1e-6)


def test_nonfinite_tokens_are_counted_and_left_out() -> None:
    hidden = torch.ones(1, 4, 4)
    hidden[0, 1, 2], hidden[0, 2, 0] = math.nan, math.inf
    pool = TokenPool()
    pool.add(token_norms(hidden))
    found = _report(pool)
    assert (found["nonfinite"], found["tokens"], found["l2_median"]) == (2, 4, 2.0)


def test_zero_tokens_are_no_sinks_and_have_no_inflation() -> None:
    pool = TokenPool()
    pool.add(token_norms(torch.zeros(1, 3, 500)))
    found = _report(pool)
    assert (found["sinks"], found["l2_median"]) == (0, 0.0)
    assert "sink_inflation" not in found
    assert math.isnan(TokenPool().l2_median)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 30), min_size=0, max_size=3),
    st.sampled_from(DTYPES),
    st.sampled_from((1e-30, 1e-4, 1.0, 1e4)),
)
def test_precise_norm(shape: list[int], dtype: torch.dtype, scale: float) -> None:
    tensor = (_random(tuple(shape), 1) * scale).to(dtype)
    expected = float(np.sqrt((tensor.double().numpy() ** 2).sum()))
    assert precise_norm(tensor) == pytest.approx(expected, rel=1e-6)


def test_precise_norm_of_many_elements_and_of_nan() -> None:
    tensor = torch.full((3000, 1000), 0.1)
    # Equal elements are the worst case of a float32 row of 1000: off by 4e-7.
    assert precise_norm(tensor) == pytest.approx(float(tensor[0, 0]) * 3e6**0.5, rel=1e-6)
    assert math.isnan(precise_norm(torch.tensor([[1.0, math.nan], [1.0, 1.0]])))
    assert precise_norm(torch.tensor([[math.inf], [1.0]])) == math.inf


def _cosines(vectors: np.ndarray) -> float:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    products = units @ units.T
    return float(products[np.triu_indices(len(vectors), 1)].mean())


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 9), st.integers(0, 10**6))
def test_signal_tokens_against_numpy(clips: int, tokens: int, width: int, seed: int) -> None:
    output = torch.tanh(3 * _random((clips, tokens, width), seed)) * 2
    output[:, 0, 0] = 1.25  # a dead unit
    collector = SignalTokens()
    collector.add(output[:1], 2.0)
    collector.add(output[1:], 2.0)
    rows = Rows("test", 0)
    collector.report(rows)
    log, plain = RecordLog(rows.records), output.double().numpy()
    assert log.value(statistic="saturated") == pytest.approx((np.abs(plain) > 1.98).mean())
    dead = (np.ptp(plain, axis=0) <= 1e-6 * np.abs(plain).max(0)).mean()
    assert log.value(statistic="dead_units") == pytest.approx(dead)
    between = _cosines(plain.reshape(clips, -1))
    assert log.value(statistic="cosine_between_clips") == pytest.approx(between, abs=1e-9)
    within = log.value(statistic="cosine_between_tokens")
    if tokens == 1:
        assert within is None
    else:
        assert within == pytest.approx(np.mean([_cosines(c) for c in plain]), abs=1e-9)


def test_flat_projector_output_is_one_token_per_clip() -> None:
    collector, output = SignalTokens(), as_tokens(torch.ones(3, 4))
    collector.add(output, None)
    collector.pool.add(token_norms(output))
    rows = Rows("test", 0)
    collector.report(rows)
    log = RecordLog(rows.records)
    assert log.value(statistic="tokens") == 3
    assert log.value(statistic="dead_units") == 1.0
    assert log.value(statistic="cosine_between_clips") == pytest.approx(1.0)
    assert log.value(statistic="saturated") is None
    assert log.value(statistic="cosine_between_tokens") is None


def test_one_clip_or_unequal_token_counts_say_nothing_about_clips() -> None:
    for parts in ([torch.ones(1, 2, 4)], [torch.ones(1, 2, 4), torch.ones(1, 3, 4)]):
        collector = SignalTokens()
        for part in parts:
            collector.add(part, None)
        rows = Rows("test", 0)
        collector.report(rows)
        assert RecordLog(rows.records).value(statistic="dead_units") is None
        assert RecordLog(rows.records).value(statistic="cosine_between_clips") is None


def test_zero_vectors_have_no_direction() -> None:
    cosine = MeanCosine()
    cosine.add(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert cosine.value is None
    cosine.add(torch.tensor([[0.0, 2.0]]))
    assert cosine.value == pytest.approx(0.0)
