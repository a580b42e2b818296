"""The same CLAP weights through laion-clap's code and through transformers': equal, as measured.

No published checkpoint is on this machine, so the weights are random, but of full size, and batch
norm has the running statistics of decibels, so that the towers see what they do in earnest.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

from safe.models.audio_encoders import FrozenEncoder, load_audio_encoder
from safe.models.audio_encoders.laion import as_16_bit, audio_config, random_branch
from safe.models.audio_encoders.laion_mel import fusion_mel
from safe.models.audio_encoders.local import LocalFeatures

TOLERANCE = 2e-5
"""Of a component of a unit vector of 512, when both hear 16 bits. Measured worst case 8.8e-7,
of the fusion checkpoint 3.1e-6 (docs/encoders.md says both, and the tolerances)."""
UNQUANTISED = 1e-2
"""transformers does not round to 16 bits, which moves what is silent beside a tone by 20 dB and
the embedding by up to 3.5e-3 (of noise by 1.4e-6). Another clip's embedding differs by 0.16."""
LOCAL_TOLERANCE = 3e-3
"""Of a local feature, whose values have RMS 1. Measured worst case 7e-4."""

WIDTHS = {"tiny": 768, "base": 1024}
"""Of HTSAT's features; base is the one of laion-clap's music_* checkpoints."""
RENAMED = (
    ("bn0", "batch_norm"),
    (".attn.relative", ".attention.self.relative"),
    (".attn.proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
)
DROPPED = ("spectrogram_extractor", "logmel_extractor", "tscam_conv", "head.", "attn_mask")


def in_transformers_words(branch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of laion-clap's branch, and cut its fused query, key and value apart."""
    found = {}
    for name, tensor in branch.items():
        if any(part in name for part in DROPPED):
            continue
        for old, new in RENAMED:
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for word, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace(".attn.qkv.", f".attention.self.{word}.")] = part
        else:
            found[name] = tensor
    return {f"audio_model.audio_encoder.{name}": tensor for name, tensor in found.items()}


@pytest.fixture(scope="module", params=["tiny", "fusion", "base"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FrozenEncoder, FrozenEncoder]:
    """One set of weights, from laion-clap's file and from transformers' folder."""
    folder = tmp_path_factory.mktemp("both")
    torch.manual_seed(3)
    fuses, size = request.param == "fusion", "base" if request.param == "base" else "tiny"
    branch = random_branch(audio_config(f"HTSAT-{size}"), fusion=fuses)
    branch.bn0.running_mean.uniform_(-45, -25)
    branch.bn0.running_var.uniform_(100, 400)
    width = WIDTHS[size]
    projection = nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 512))
    whole = nn.ModuleDict({"audio_branch": branch, "audio_projection": projection})
    torch.save(whole.state_dict(), folder / "best.pt")
    sizes: dict[str, Any] = {"enable_fusion": fuses, "projection_dim": 512}
    if size == "base":
        sizes |= {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]}
    model = ClapAudioModelWithProjection(ClapAudioConfig(**sizes))
    state = in_transformers_words(branch.state_dict())
    for index, layer in ((1, projection[0]), (2, projection[2])):
        for name, value in layer.state_dict().items():
            state[f"audio_projection.linear{index}.{name}"] = value
    assert set(state) == set(model.state_dict())
    model.load_state_dict(state)
    model.save_pretrained(folder / "hf")
    rule = "fusion" if fuses else "rand_trunc"
    extractor = {"truncation": rule, "frequency_min": 50}  # 50 Hz as published; the default is 0
    ClapFeatureExtractor(**extractor).save_pretrained(folder / "hf")
    names = (f"laion-clap:{folder / 'best.pt'}", f"hf:{folder / 'hf'}")
    return load_audio_encoder(names[0]), load_audio_encoder(names[1])


def clips() -> tuple[Tensor, Tensor]:
    """A tone, noise and a chirp of 12, 10 and 3 seconds at 48 kHz."""
    time = torch.arange(12 * 48_000) / 48_000
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0)) * 0.1
    waves = torch.stack([0.5 * torch.sin(2000 * time), noise, 0.3 * torch.sin(900 * time**2)])
    return waves, torch.tensor([12, 10, 3]) * 48_000


def test_pooled_embeddings_are_equal(both: tuple[FrozenEncoder, FrozenEncoder]) -> None:
    (laion, hub), (waves, lengths) = both, clips()
    one, other = laion.encode(waves, lengths), hub.encode(as_16_bit(waves), lengths)
    assert (one - other).abs().max() < TOLERANCE
    assert (one - hub.encode(waves, lengths)).abs().max() < UNQUANTISED
    assert min((one[i] - one[j]).abs().max() for i, j in ((0, 1), (1, 2))) > 10 * UNQUANTISED


def test_local_features_are_equal_and_average_to_the_pooled(
    both: tuple[FrozenEncoder, FrozenEncoder],
) -> None:
    waves, lengths = clips()
    laion, hub = (LocalFeatures(encoder) for encoder in both)
    assert laion.shape == hub.shape and laion.shape in {(64, width) for width in WIDTHS.values()}
    one, other = laion.encode(waves, lengths), hub.encode(as_16_bit(waves), lengths)
    assert one.shape == (3, *laion.shape)
    assert (one - other).abs().max() < LOCAL_TOLERANCE
    encoder: Any = both[0]
    with torch.no_grad():
        embedded = encoder.audio_projection(one.mean(dim=1))
    torch.testing.assert_close(
        nn.functional.normalize(embedded, dim=-1), encoder.encode(waves, lengths), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("both", ["tiny", "fusion"], indirect=True)
def test_local_features_are_in_order_of_time(both: tuple[FrozenEncoder, FrozenEncoder]) -> None:
    """A click changes the features of its moment most, of 32, two bands each."""
    places = (0.1, 0.4, 0.75, 0.95)
    waves = torch.zeros(1 + len(places), 480_000)  # silence, and a click early, later, late
    for wave, place in zip(waves[1:], places, strict=True):
        start = int(place * 480_000)
        wave[start : start + 4800] = 0.5 * torch.sin(torch.arange(4800) * 0.3)
    for encoder in both:
        silence, *clicked = LocalFeatures(encoder).encode(waves)
        for place, features in zip(places, clicked, strict=True):
            change = (features - silence).norm(dim=-1).unflatten(0, (32, 2)).sum(dim=1)
            assert abs(change.argmax().item() - place * 32) <= 2


def test_fusion_mel_is_transformers() -> None:
    """Measured worst case 3.1e-5 dB: theirs is computed in float64."""
    extractor = ClapFeatureExtractor(truncation="fusion", frequency_min=50)
    wave = clips()[0][1, :480_000]
    theirs = extractor([wave.numpy()], sampling_rate=48_000, return_tensors="pt")["input_features"]
    ours = fusion_mel(wave[None])
    assert theirs.shape == (1, 4, 1001, 64)
    torch.testing.assert_close(theirs[0, 0], ours[0], rtol=0, atol=1e-3)


def test_a_fusion_checkpoint_needs_its_fusion_weights(tmp_path: Path) -> None:
    branch = random_branch(audio_config("HTSAT-tiny"), fusion=True)
    state = {f"audio_branch.{name}": value for name, value in branch.state_dict().items()}
    projection = nn.Sequential(nn.Linear(768, 512), nn.ReLU(), nn.Linear(512, 512))
    state |= {f"audio_projection.{name}": v for name, v in projection.state_dict().items()}
    torch.save(state, tmp_path / "fusion.pt")
    encoder = load_audio_encoder(f"laion-clap:{tmp_path / 'fusion.pt'}")
    assert isinstance(encoder, FrozenEncoder)
    clip = clips()[0][1:2, :96_000]
    assert torch.equal(encoder.encode(clip), encoder.encode(clip))
