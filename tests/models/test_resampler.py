"""The resampler: by its formula, its bound, what its tokens can tell apart, sizes, error texts."""

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.arithmetic import count_parameters
from configs.errors import ConfigError, ModelError
from configs.model_configs import get_config
from configs.overrides import apply_values
from configs.schema import ProjectorConfig
from probes.diagnosis import diagnose
from safe.models.adapter_files import from_pretrained, save_pretrained
from safe.models.build_projector import build_projector
from safe.models.resampler import ResamplerProjector

D, H, N, M, WIDTH = 12, 8, 5, 7, 128
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def resampler(local=True, scale=2.0, dtype=torch.float32):
    torch.manual_seed(1)
    return ResamplerProjector(D, H, N, WIDTH, scale, local=local).to(dtype)


def features(local, count=3, seed=0):
    shape = (count, M, D) if local else (count, D)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("local", [False, True])
def test_by_its_formula_in_numpy(local):
    model = resampler(local).double()
    x = features(local).double().numpy()
    own = {name: p.detach().numpy() for name, p in model.named_parameters()}
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normal = normal * own["norm.weight"] + own["norm.bias"]
    value = normal @ own["value.weight"].T + own["value.bias"]
    if local:
        place = np.array([[f(m / 10_000 ** (2 * (d // 2) / D)) for d, f in
                           ((d, (math.sin, math.cos)[d % 2]) for d in range(D))]
                          for m in range(M)])  # fmt: skip
        key = (normal + place) @ own["key.weight"].T
        heard = np.empty((3, N, WIDTH))
        for head in range(2):
            part = slice(64 * head, 64 * head + 64)
            score = np.einsum("nd,bmd->bnm", own["query"][:, part], key[..., part]) / 8
            weight = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
            heard[..., part] = weight @ value[..., part]
    else:
        heard = value[:, None]
    hidden = torch.nn.functional.gelu(torch.from_numpy(own["query"] + heard)).numpy()
    expected = 2 * np.tanh(hidden @ own["out.weight"].T + own["out.bias"])
    # sines are computed in float32: worst case measured 3e-8
    torch.testing.assert_close(
        model(torch.from_numpy(x)), torch.from_numpy(expected), rtol=0, atol=1e-6
    )


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.floats(1e-30, 1e30),
    st.sampled_from([0.0, 1.0, 1e20, 3e38]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
)
def test_every_element_is_within_the_scale(seed, scale, size, dtype, local, autocast):
    model = resampler(local, scale, dtype)
    x = (features(local, seed=seed).clamp(-1, 1) * size).float()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        tokens = model(x)
    assert tokens.shape == (3, N, H)
    assert tokens.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert bool(torch.isfinite(tokens).all())
    assert tokens.abs().max().item() <= scale


@pytest.mark.parametrize("local", [False, True])
def test_every_parameter_learns(local):
    model = resampler(local)
    model(features(local)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


def test_order_in_time_is_heard():
    """The same features in another order: a mean would not know."""
    model, x = resampler(), features(True)
    backwards = model(x.flip(1))
    assert (model(x) - backwards).abs().max() > 1e-3
    pooled = resampler(local=False)
    assert torch.allclose(pooled(x.mean(1)), pooled(x.flip(1).mean(1)), atol=1e-6)


def test_tokens_and_clips_differ():
    for local in (False, True):
        tokens = resampler(local)(features(local))
        assert tokens.std(dim=1).mean() > 0.05, "tokens of a clip"
        assert tokens.std(dim=0).mean() > 0.05, "clips of a token"


def test_nothing_cancels_the_scale():
    small, large = resampler(scale=2.0), resampler(scale=10.0)
    torch.testing.assert_close(large(features(True)), 5 * small(features(True)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 32 * 1024 + (512 * 1024 + 1024) + (1024 * 5120 + 5120)),
        (
            {"model.audio_features": "local", "model.audio_dim": 768},
            32 * 1024 + 768 * 1024 + (768 * 1024 + 1024) + (1024 * 5120 + 5120),
        ),
    ],
    ids=["pooled", "local"],
)
def test_six_million_instead_of_168(changes, expected):
    config = apply_values(
        get_config("phase1"), {"model.projector.kind": "resampler", **changes}
    ).model
    with torch.device("meta"):
        model = build_projector(config)
    counted = count_parameters(config)
    assert counted.projector == expected and 5.8e6 < expected < 6.9e6
    assert sum(p.numel() for p in model.parameters()) == counted.projector + counted.norm


@pytest.mark.parametrize("local", [False, True])
def test_as_a_part_of_the_model(make_model, make_backbone, text_batch, tmp_path, local):
    """Trains, is saved and read back bit for bit, hears each beam its own clip, and is probed."""
    ids, mask = text_batch()
    kind = {"kind": "resampler", "num_tokens": 6, "bottleneck_dim": 64}
    changes = {"audio_features": "local" if local else "pooled", "projector": kind}
    model = make_model(**changes).train()
    x = features(local)
    labels = ids.masked_fill(mask == 0, -100).index_fill(1, torch.tensor([0, 1, 2]), -100)
    model(ids, mask, x, labels).loss.backward()
    names = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    parts = ["query", "value.weight", "value.bias", "out.weight", "out.bias"]
    wanted = [*parts, *(["key.weight"] if local else []), "norm.weight", "norm.bias"]
    assert names == {n for g in model.trainable_groups().values() for n in g}
    assert set(model.trainable_groups()["projector"]) == {f"projector.{n}" for n in wanted}
    model.zero_grad(set_to_none=True)
    model.eval()
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path, make_backbone())
    with torch.no_grad():
        assert torch.equal(model(ids, mask, x).logits, again(ids, mask, x).logits)
    found = diagnose(
        model,
        [{"input_ids": ids, "attention_mask": mask, "audio": x, "labels": labels}],
        probes=("magnitude", "gates", "gradflow", "parameters", "influence"),
    )
    seen = {(r.probe, r.component) for r in found.log if r.value == r.value}
    assert {
        ("gradflow", "projector"),
        ("magnitude", "projector"),
        ("parameters", "projector"),
    } <= seen


def test_errors():
    with pytest.raises(ModelError, match=r"must have shape \[B, M, 12\] \(local features\), got"):
        resampler()(features(False))
    with pytest.raises(ModelError, match=r"must have shape \[B, 12\], got shape \[3, 7, 12\]"):
        resampler(local=False)(features(True))
    bad = features(True)
    bad[1, 3, 4] = math.nan
    with pytest.raises(ModelError, match=r"batch rows \[1\] contain NaN or Inf"):
        resampler()(bad)
    with pytest.raises(ModelError, match="are 11 wide"):
        resampler()(bad[..., 1:])
    with pytest.raises(ModelError, match="scale must be a finite number above 0, got nan"):
        resampler(scale=math.nan)
    with pytest.raises(ConfigError, match="bottleneck_dim = None: a resampler needs a width"):
        ProjectorConfig(kind="resampler", bottleneck_dim=None)
    with pytest.raises(ConfigError, match="set model.projector.kind=resampler"):
        replace(get_config("phase1").model, audio_features="local")
