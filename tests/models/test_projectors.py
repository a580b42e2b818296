"""Audio projectors: bounds for every input, sizes, token counts, error texts."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ModelError
from safe.models.build_projector import build_projector
from safe.models.projectors import (
    AdaptiveAudioProjector,
    Amplitude,
    AudioProjector,
)

D, H, N = 12, 8, 5
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SCALES = st.floats(1e-30, 1e30) | st.sampled_from([2.0, 10.0, 0.1, 1 / 3, 1e-300, 1e300])


@cache
def projector(scale=2.0, bottleneck=6, dtype=torch.float32):
    torch.manual_seed(0)
    return AudioProjector(D, H, N, bottleneck, scale).to(dtype)


@st.composite
def embeddings(draw):
    """[B, D] finite, of any dtype, up to its largest number."""
    dtype = draw(st.sampled_from(DTYPES))
    top = torch.finfo(dtype).max
    exponent = math.frexp(top)[1]
    exponents = st.integers(-exponent, exponent - 1) | st.integers(8, min(60, exponent - 1))
    size = draw(exponents.map(lambda e: 2.0**e) | st.just(top))
    value = st.floats(-1, 1) | st.sampled_from([0.0, 1.0, -1.0])
    rows = draw(st.lists(st.lists(value, min_size=D, max_size=D), min_size=1, max_size=3))
    return (torch.tensor(rows, dtype=torch.float64) * size).to(dtype).clamp(-top, top)


# ---- bounds


@settings(max_examples=200, deadline=None)
@given(embeddings(), SCALES, st.sampled_from(DTYPES), st.sampled_from([None, 6]), st.booleans())
def test_every_element_is_within_the_scale(x, scale, dtype, bottleneck, autocast):
    model = projector(scale, bottleneck, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tokens = model(x)
    assert tokens.shape == (len(x), N, H)
    assert torch.isfinite(tokens).all()
    assert tokens.double().abs().max().item() <= scale
    assert tokens.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20), SCALES)
def test_amplitude_is_tanh_times_scale(values, scale):
    x = torch.tensor(values, dtype=torch.float64)
    out = Amplitude(scale)(x)
    assert out.abs().max().item() <= scale
    expected = [math.tanh(v) * scale for v in values]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_large_and_ordinary_inputs_are_projected_alike():
    # a LayerNorm comes first, so only an input's direction matters, whatever its size
    model = projector(dtype=torch.float64)
    x = torch.randn(4, D, dtype=torch.float64)
    for factor in (2.0**20, 2.0**60, 1e150):
        torch.testing.assert_close(model(x * factor), model(x * 1e4), rtol=1e-4, atol=1e-4)


def test_the_projector_by_its_formula():
    model = projector(scale=3.0)
    x = torch.randn(4, D)
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    normal = (x - mean) / (var + 1e-5).sqrt() * model.norm.weight + model.norm.bias
    first, last = model.mlp[0], model.mlp[2]
    inner = normal @ first.weight.T + first.bias
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    expected = 3.0 * torch.tanh(inner @ last.weight.T + last.bias)
    torch.testing.assert_close(model(x), expected.reshape(4, N, H))


def test_nothing_cancels_the_scale():
    x = torch.randn(4, D)
    torch.testing.assert_close(projector(10.0)(x), 5 * projector(2.0)(x))


@pytest.mark.parametrize("size", [1e3, 6e4, 1e5, 1e9, 1e13, 1e38])
def test_half_precision_does_not_overflow(size):
    x = torch.linspace(-1, 1, D)[None]
    tokens = projector(dtype=torch.float16)(x * size)
    torch.testing.assert_close(tokens, projector()(x * 1e3), rtol=0.02, atol=0.01)


def test_gradients_are_finite_for_huge_inputs():
    model = projector()
    model(torch.full((2, D), 3e38) * torch.linspace(-1, 1, D)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# ---- sizes


@pytest.mark.parametrize(
    ("tokens", "bottleneck", "expected"),
    [(16, 1024, 84_493_312), (32, 1024, 168_461_312), (32, 4096, 673_353_728)],
)
def test_parameter_counts_at_13b(tokens, bottleneck, expected):
    with torch.device("meta"):
        model = AudioProjector(512, 5120, tokens, bottleneck)
    mlp = sum(p.numel() for p in model.mlp.parameters())
    norm = sum(p.numel() for p in model.norm.parameters())
    assert (mlp, norm) == (expected, 1024)
    assert mlp + norm == sum(p.numel() for p in model.parameters())


def test_parameter_count_without_a_bottleneck():
    with torch.device("meta"):
        model = AudioProjector(512, 5120, 32, None)
    assert sum(p.numel() for p in model.mlp.parameters()) == 84_049_920


def test_build_by_config(make_config):
    def build(**projector):
        return build_projector(replace(make_config(projector=projector), audio_dim=D))

    plain = build(num_tokens=7, bottleneck_dim=None, scale=3.0)
    assert type(plain) is AudioProjector
    assert (plain.num_tokens, plain.scale, len(plain.mlp)) == (7, 3.0, 1)
    adaptive = build(kind="adaptive", num_tokens=9, min_tokens=4, bottleneck_dim=6)
    assert isinstance(adaptive, AdaptiveAudioProjector)
    assert (adaptive.num_tokens, adaptive.min_tokens, adaptive.mlp[0].out_features) == (9, 4, 6)


# ---- adaptive token counts


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))),
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=8),
    st.floats(0.1, 100),
)
def test_token_counts_lie_in_range_and_grow_with_the_seconds(bounds, seconds, full):
    low, high = bounds
    model = AdaptiveAudioProjector(4, 2, high, None, min_tokens=low, full_seconds=full)
    mask = model.token_mask(torch.tensor(sorted(seconds)))
    count = mask.sum(1).tolist()
    assert all(low <= c <= high for c in count)
    assert count == sorted(count)
    # the tokens in use come first
    assert torch.equal(mask, torch.arange(high)[None] < torch.tensor(count)[:, None])
    assert model.token_mask(torch.tensor([full * 1.001])).sum() == high


def test_token_counts_by_hand():
    model = AdaptiveAudioProjector(D, H, 32, None, min_tokens=8)
    seconds = torch.tensor([0.0, 1.0, 2.5, 5.0, 5.1, 10.0, 60.0, math.nan])
    assert model.token_mask(seconds).sum(1).tolist() == [8, 8, 8, 16, 17, 32, 32, 32]


# ---- errors


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_elements_name_their_rows(bad):
    x = torch.zeros(4, D)
    x[1, 3] = x[3, 0] = bad
    with pytest.raises(ModelError, match=r"rows \[1, 3\] contain NaN or Inf; find the"):
        projector()(x)


@pytest.mark.parametrize("shape", [(D,), (2, 3, D), ()])
def test_wrong_rank(shape):
    with pytest.raises(ModelError, match=rf"must have shape \[B, {D}\], got shape"):
        projector()(torch.zeros(shape))


def test_wrong_width():
    with pytest.raises(ModelError, match=rf"are 7 wide \(shape \[2, 7\]\).*made for {D}; use the"):
        projector()(torch.zeros(2, 7))


def test_wrong_type():
    with pytest.raises(ModelError, match=r"must be floating point, got torch\.int64"):
        projector()(torch.zeros(2, D, dtype=torch.long))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_bad_scale(scale):
    with pytest.raises(ModelError, match="scale must be a finite number above 0, got"):
        AudioProjector(D, H, N, None, scale)


@pytest.mark.parametrize("low", [0, 6])
def test_bad_min_tokens(low):
    with pytest.raises(ModelError, match=f"between 1 and num_tokens=5, got {low}"):
        AdaptiveAudioProjector(D, H, 5, None, min_tokens=low)
