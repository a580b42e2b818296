"""Audio encoders: what they promise, and that they compute what their packages compute."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    ClapAudioConfig,
    ClapAudioModelWithProjection,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
)

from configs.errors import ModelError
from safe.fetch import fetched_path, is_fetched
from safe.models.audio_encoders import FrozenEncoder, load_audio_encoder
from safe.models.audio_encoders import aisfx as aisfx_module
from safe.models.audio_encoders import mel as mel_module
from safe.models.audio_encoders.laion import audio_config, random_branch
from safe.models.audio_encoders.local import LocalFeatures
from safe.models.hub import EMBEDDED

needs_aisfx = pytest.mark.skipif(
    not is_fetched("aisfx"), reason="needs aiSFX: safe-train fetch aisfx"
)
BATCH_TOLERANCE = 1e-6
"""Batched and single kernels may round differently: worst case measured 4.5e-8 in a component of
a unit vector, over four encoders and five seeds. Another clip's embedding differs by 5e-3."""


def noise(batch: int, samples: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random CLAP that hears 2 s at 8 kHz."""
    folder = tmp_path_factory.mktemp("clap") / "tiny"
    torch.manual_seed(0)
    ClapAudioModelWithProjection(clap_config()).save_pretrained(folder)
    clap_extractor().save_pretrained(folder)
    return folder


def clap_config(**changes: Any) -> ClapAudioConfig:
    sizes = {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 64,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "projection_dim": 512,
        "fusion_num_hidden_layers": 1,
    }
    return ClapAudioConfig(**{**sizes, **changes})


def clap_extractor(**changes: Any) -> ClapFeatureExtractor:
    rules = {
        "sampling_rate": 8000,
        "max_length_s": 2,
        "frequency_max": 4000,
        "frequency_min": 0,
        "hop_length": 160,
        "truncation": "rand_trunc",
    }
    return ClapFeatureExtractor(**{**rules, **changes})


@pytest.fixture(scope="module")
def laion_state() -> dict[str, Tensor]:
    """Return the state dict of a random laion-clap as its training script saves it under DDP."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "audio_branch": random_branch(audio_config("HTSAT-tiny")),
            "audio_projection": nn.Sequential(nn.Linear(768, 512), nn.ReLU(), nn.Linear(512, 512)),
            "text_branch": nn.Linear(4, 4),
            "text_projection": nn.Linear(4, 4),
            "audio_transform": nn.Linear(4, 4),
        }
    )
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    return {**state, "module.logit_scale_a": torch.tensor(1.0)}


@pytest.fixture(scope="module")
def laion_file(laion_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("laion") / "best.pt"
    torch.save({"epoch": np.int64(3), "name": "x", "state_dict": laion_state}, path)
    return path


@pytest.fixture(scope="module")
def encoders(clap_folder: Path, laion_file: Path) -> dict[str, FrozenEncoder]:
    names = (f"hf:{clap_folder}", f"laion-clap:{laion_file}")
    found = {name.partition(":")[0]: load_audio_encoder(name) for name in names}
    if (EMBEDDED / "clap" / "model.safetensors").is_file():
        found["embedded"] = load_audio_encoder("embedded")
    if is_fetched("aisfx"):
        found["aisfx"] = load_audio_encoder("aisfx")
    return found


@pytest.fixture(params=["hf", "laion-clap", "embedded", "aisfx"])
def encoder(request: pytest.FixtureRequest, encoders: dict[str, FrozenEncoder]) -> FrozenEncoder:
    if request.param not in encoders:
        pytest.skip(f"the weights of {request.param} are not on this machine")
    return encoders[request.param]


def test_promises(encoder: FrozenEncoder) -> None:
    assert not any(param.requires_grad for param in encoder.parameters())
    assert not any(module.training for module in encoder.train().modules())
    assert encoder.normalized
    assert encoder.crop_rule == "center"
    assert encoder.identity.endswith("+center")
    clips = noise(3, encoder.sample_rate)
    clips[1] = torch.sin(torch.arange(encoder.sample_rate) * 0.05)
    embeddings = encoder.encode(clips)
    assert embeddings.shape == (3, 512)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    assert torch.equal(embeddings, encoder.encode(clips))
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


def test_a_layer_can_train_on_embeddings(encoder: FrozenEncoder) -> None:
    layer = nn.Linear(512, 2)
    layer(encoder.encode(noise(1, 4000))).sum().backward()
    assert layer.weight.grad is not None


def test_padding_and_neighbours_change_nothing(encoder: FrozenEncoder) -> None:
    rate = encoder.sample_rate
    lengths = torch.tensor([rate, rate // 3, 1])
    clips = noise(3, rate)
    padded = clips.clone()
    padded[1, lengths[1] :] = float("nan")  # never looked at
    padded[2, 1:] = 7.0
    together = encoder.encode(padded, lengths)
    for index, length in enumerate(lengths.tolist()):
        alone = encoder.encode(clips[index : index + 1, :length])
        torch.testing.assert_close(together[index], alone[0], rtol=0, atol=BATCH_TOLERANCE)


def test_long_clips_are_cropped_to_their_middle(encoder: FrozenEncoder) -> None:
    longest = int(encoder.max_seconds * encoder.sample_rate)
    clip = noise(1, longest + 1001)
    middle = clip[:, 500 : 500 + longest]
    np.random.seed(1)  # the extractor's own random crop would start from here
    assert torch.equal(encoder.encode(clip), encoder.encode(middle))


def test_local_features(encoder: FrozenEncoder) -> None:
    """As many for every clip, in order of time, whatever stands beside it in the batch."""
    local = LocalFeatures(encoder)
    assert local.identity == f"{encoder.identity}+local"
    assert (local.crop_rule, local.sample_rate) == ("center", encoder.sample_rate)
    longest = int(encoder.max_seconds * encoder.sample_rate)
    clips = noise(2, longest)
    lengths = torch.tensor([longest, longest // 3])
    found = local.encode(clips, lengths)
    assert found.shape == (2, *local.shape) and local.shape == encoder.local_shape
    assert found.dtype == torch.float32 and not found.requires_grad
    alone = local.encode(clips[1:, : longest // 3])
    # unit variance, not unit length: worst case measured 1e-6
    torch.testing.assert_close(alone[0], found[1], rtol=0, atol=2e-5)
    late = clips[:1].clone()
    late[0, -longest // 10 :] = 0
    change = (local.encode(late) - found[:1]).norm(dim=-1)[0]
    assert change.argmax() >= 0.7 * len(change)


def test_silence_and_short_clips_have_an_embedding(encoder: FrozenEncoder) -> None:
    for clip in (torch.zeros(1, 1), torch.zeros(1, 5000), torch.ones(1, 7)):
        assert bool(torch.isfinite(encoder.encode(clip)).all())


@pytest.mark.parametrize(
    ("waveform", "lengths", "message"),
    [
        (torch.zeros(100), None, r"shape \(100,\): must be \[clips, samples\]"),
        (torch.zeros(0, 100), None, "at least one clip"),
        (torch.zeros(1, 100, dtype=torch.float64), None, r"torch.float64: must be torch.float32"),
        (torch.zeros(1, 100, dtype=torch.int16), None, r"use .float\(\)"),
        (torch.full((2, 9), float("nan")), None, "clip 0 of the batch contains NaN or Inf"),
        (torch.tensor([[0.0], [float("inf")]]), None, "clip 1 of the batch contains NaN or Inf"),
        (torch.zeros(2, 9), torch.tensor([9]), "1 lengths for 2 clips"),
        (torch.zeros(2, 9), torch.tensor([9, 0]), "clip 1 .* length 0: must be 1 to 9 samples"),
        (torch.zeros(2, 9), torch.tensor([10, 1]), "clip 0 .* length 10: must be 1 to 9"),
        (torch.zeros(1, 0), None, "length 0: must be 1 to 0"),
    ],
)
def test_bad_input(
    encoders: dict[str, FrozenEncoder], waveform: Tensor, lengths: Tensor | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        encoders["hf"].encode(waveform, lengths)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clap", r"unknown audio encoder 'clap'.*known: embedded, aisfx, laion-clap:CHECKPOINT"),
        ("aisfy", "did you mean 'aisfx'"),
        ("hf:", "unknown audio encoder 'hf:'"),
        ("laion-clap", "audio encoder laion-clap needs a checkpoint: laion-clap:CHECKPOINT.pt"),
        ("hf:./nowhere", "no such model folder"),
        ("laion-clap:/nowhere/x.pt", "no checkpoint /nowhere/x.pt"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_audio_encoder(name)


def test_an_encoder_without_local_features(encoders: dict[str, FrozenEncoder]) -> None:
    class Deaf(FrozenEncoder):
        def _embed(self, clips: list[Tensor]) -> Tensor:
            return torch.ones(len(clips), 512)

    with pytest.raises(ModelError, match="audio encoder deaf has no local features; leave out"):
        LocalFeatures(Deaf("deaf", "deaf@1", 8000, 1.0))
    with pytest.raises(ModelError, match=r"waveform has shape \(9,\)"):
        LocalFeatures(encoders["hf"]).encode(torch.zeros(9))


# --- CLAP of transformers


def test_clap_is_transformers_own(clap_folder: Path, encoders: dict[str, FrozenEncoder]) -> None:
    clips = noise(2, 16000)
    model = ClapAudioModelWithProjection.from_pretrained(clap_folder).eval()
    inputs = clap_extractor()([*clips.numpy()], sampling_rate=8000, return_tensors="pt")
    with torch.no_grad():
        expected = F.normalize(model(**inputs).audio_embeds, dim=-1)
    assert torch.equal(encoders["hf"].encode(clips), expected)


def test_the_audio_half_of_a_whole_clap(tmp_path: Path) -> None:
    torch.manual_seed(2)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 20, "projection_dim": 512}  # fmt: skip
    whole = ClapModel(
        ClapConfig(text_config=text, audio_config=clap_config().to_dict(), projection_dim=512)
    ).eval()
    whole.save_pretrained(tmp_path)
    clap_extractor().save_pretrained(tmp_path)
    encoder, clips = load_audio_encoder(f"hf:{tmp_path}"), noise(2, 16000)
    assert not [name for name, _ in encoder.named_parameters() if "text" in name]
    inputs = clap_extractor()([*clips.numpy()], sampling_rate=8000, return_tensors="pt")
    with torch.no_grad():
        expected = whole.get_audio_features(**inputs).pooler_output
    # measured 0
    torch.testing.assert_close(encoder.encode(clips), expected, rtol=0, atol=1e-6)


def test_clap_identity_follows_the_weights(clap_folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(clap_folder, tmp_path / "tiny")
    first, second = (load_audio_encoder(f"hf:{folder}") for folder in (clap_folder, moved))
    assert first.identity == second.identity
    assert first.name != second.name
    torch.manual_seed(9)
    ClapAudioModelWithProjection(clap_config()).save_pretrained(moved)
    assert load_audio_encoder(f"hf:{moved}").identity != first.identity


def test_fusion_clap_is_deterministic(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = clap_config(enable_fusion=True, fusion_type=None)
    ClapAudioModelWithProjection(config).save_pretrained(tmp_path / "fusion")
    clap_extractor(truncation="fusion").save_pretrained(tmp_path / "fusion")
    encoder = load_audio_encoder(f"hf:{tmp_path / 'fusion'}")
    clips = noise(4, 8000)
    first = encoder.encode(clips)
    assert all(torch.equal(first, encoder.encode(clips)) for _ in range(5))


def test_clap_of_a_pickle_is_not_opened(
    clap_folder: Path, with_pickle: Callable[[Path], Path]
) -> None:
    folder = with_pickle(clap_folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"are a pickle \(.*pytorch_model.bin\)"):
        load_audio_encoder(f"hf:{folder}")


def test_clap_that_does_not_fit(clap_folder: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    ClapAudioModelWithProjection(clap_config(projection_dim=64)).save_pretrained(narrow)
    clap_extractor().save_pretrained(narrow)
    with pytest.raises(ModelError, match="embeddings of width 64: must be 512"):
        load_audio_encoder(f"hf:{narrow}")
    deeper = shutil.copytree(clap_folder, tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text())
    config["depths"] = [1, 1, 2, 1]
    (deeper / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lacks audio weights: audio_model"):
        load_audio_encoder(f"hf:{deeper}")
    config["depths"] = [1, 1, 0, 1]
    (deeper / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has unknown audio weights: audio_model"):
        load_audio_encoder(f"hf:{deeper}")
    (deeper / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="not a CLAP that can be loaded"):
        load_audio_encoder(f"hf:{deeper}")


# --- laion-clap


def test_laion_branch_is_the_packages_own(laion_file: Path, laion_state: dict[str, Tensor]) -> None:
    path_before = list(sys.path)
    encoder = load_audio_encoder(f"laion-clap:{laion_file}")
    assert sys.path == path_before
    assert "laion_clap" not in sys.modules
    assert (encoder.sample_rate, encoder.max_seconds) == (48000, 10.0)
    assert encoder.identity.startswith("laion-clap:best.pt@")
    clip = noise(1, 100_000)
    clip[0, :3] = torch.tensor([1.5, -2.0, 0.5])
    # the package's own NumPy path: 16 bits, repeat, pad
    wave = (np.clip(clip[0].numpy(), -1.0, 1.0) * 32767.0).astype(np.int16)
    wave = (wave / 32767.0).astype(np.float32)
    filled = np.concatenate([np.tile(wave, 4), np.zeros(80_000, dtype=np.float32)])
    branch = random_branch(audio_config("HTSAT-tiny")).eval()
    prefix = "module.audio_branch."
    branch.load_state_dict(
        {k.removeprefix(prefix): v for k, v in laion_state.items() if k.startswith(prefix)}
    )
    with torch.no_grad():
        hidden = branch({"waveform": torch.from_numpy(filled)[None]}, device="cpu")["embedding"]
        for layer in (0, 2):
            weight = laion_state[f"module.audio_projection.{layer}.weight"]
            bias = laion_state[f"module.audio_projection.{layer}.bias"]
            hidden = F.linear(hidden if layer == 0 else hidden.relu(), weight, bias)
    expected = hidden / hidden.norm()
    torch.testing.assert_close(encoder.encode(clip), expected, rtol=0, atol=1e-6)


def test_only_the_audio_half_is_built(laion_file: Path) -> None:
    encoder = load_audio_encoder(f"laion-clap:{laion_file}")
    parts = {name.partition(".")[0] for name, _ in encoder.named_parameters()}
    assert parts == {"audio_branch", "audio_projection"}
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("file", "size", "fusion"),
    [
        ("630k-audioset-best.pt", "tiny", False),
        ("630k-audioset-fusion-best.pt", "tiny", True),
        ("music_speech_audioset_epoch_15_esc_89.98.pt", "base", False),
    ],
)
def test_layouts_of_the_published_checkpoints(
    tmp_path: Path, file: str, size: str, fusion: bool
) -> None:
    """By their names, with what lies beside the audio half in each; the weights are random."""
    branch = random_branch(audio_config(f"HTSAT-{size}"), fusion=fusion)
    width = {"tiny": 768, "base": 1024}[size]
    projection = nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 512))
    audio = nn.ModuleDict({"audio_branch": branch, "audio_projection": projection})
    others = {
        "text_branch.embeddings.position_ids": torch.arange(4)[None],
        "text_branch.embeddings.word_embeddings.weight": torch.zeros(4, 4),
        "text_projection.0.weight": torch.zeros(4, 4), "logit_scale_a": torch.tensor(1.0),
        "logit_scale_t": torch.tensor(1.0), "text_transform.sequential.0.weight": torch.zeros(4, 4),
        "audio_transform.sequential.0.weight": torch.zeros(4, 4),
    }  # fmt: skip
    state = {f"module.{name}": value for name, value in (audio.state_dict() | others).items()}
    training = {"optimizer": {"state": {0: {"step": 3}}}, "scaler": {"scale": 65536.0}}
    torch.save({"epoch": 15, "name": "run", "state_dict": state, **training}, tmp_path / file)
    encoder = load_audio_encoder(f"laion-clap:{tmp_path / file}")
    assert (encoder.sample_rate, encoder.max_seconds) == (48_000, 10.0)
    assert encoder.local_shape == (64, width)
    for name, value in audio.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name


def test_laion_without_ddp_prefix(
    laion_state: dict[str, Tensor], laion_file: Path, tmp_path: Path
) -> None:
    bare = {name.removeprefix("module."): value for name, value in laion_state.items()}
    torch.save(bare, tmp_path / "bare.pt")
    clip = noise(1, 48000)
    encoders = [load_audio_encoder(f"laion-clap:{p}") for p in (tmp_path / "bare.pt", laion_file)]
    assert torch.equal(encoders[0].encode(clip), encoders[1].encode(clip))


def test_laion_checkpoints_that_do_not_fit(laion_state: dict[str, Tensor], tmp_path: Path) -> None:
    def refused(state: Any, message: str) -> None:
        torch.save(state, tmp_path / "x.pt")
        with pytest.raises(ModelError, match=message):
            load_audio_encoder(f"laion-clap:{tmp_path / 'x.pt'}")

    gone = "module.audio_branch.norm.bias"
    without = {name: value for name, value in laion_state.items() if name != gone}
    refused(without, r"missing: audio_branch.norm.bias\)")
    refused(
        {**laion_state, "module.audio_branch.extra": torch.zeros(1)},
        r"unexpected: audio_branch.extra\)",
    )
    refused({**laion_state, gone: torch.zeros(3)}, r"another shape: audio_branch.norm.bias\)")
    half = "module.audio_branch.patch_embed.fusion_model.local_att.0.bias"
    refused({**laion_state, half: torch.zeros(16)}, r"missing: audio_branch.patch_embed.fusion_mo")
    refused({"module.text_branch.weight": torch.zeros(1)}, "no audio branch of HTSAT-tiny or")
    refused([1, 2], "no audio branch of HTSAT-tiny or")
    refused({"state_dict": Path("a")}, "not a checkpoint that can be opened safely")
    (tmp_path / "y.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a checkpoint that can be opened safely"):
        load_audio_encoder(f"laion-clap:{tmp_path / 'y.pt'}")


# --- aiSFX


def reference_mel(clip: np.ndarray) -> np.ndarray:
    """Recompute the spectrogram frame by frame with NumPy's FFT in float64."""

    def mel(hz: Any) -> Any:
        return 1127.01048 * np.log(1 + np.asarray(hz) / 700)

    edges = np.linspace(0, float(mel(22050)), 98)
    bins = mel(np.arange(1025) * 44100 / 2048)
    bank = np.zeros((96, 1025))
    for band in range(96):
        low, mid, high = edges[band : band + 3]
        up, down = (bins >= low) & (bins < mid), (bins >= mid) & (bins < high)
        bank[band, up] = (bins[up] - low) / (mid - low)
        bank[band, down] = (high - bins[down]) / (high - mid)
        bank[band] /= bank[band].sum()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2047)
    padded = np.concatenate([np.zeros(1024), np.clip(clip, -1, 1), np.zeros(4096)])
    frames = []
    start = 0
    while start - 1024 < len(clip):
        frames.append(np.abs(np.fft.rfft(padded[start : start + 2048] * window)) ** 2)
        start += 1024
    return np.log10(1e4 * (np.stack(frames) @ bank.T) + 1)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 12_000), gain=st.floats(0, 2), seed=st.integers(0, 99))
def test_log_mel_against_numpy(samples: int, gain: float, seed: int) -> None:
    clip = noise(1, samples, seed)[0] * gain * 10
    found = mel_module.log_mel(clip, mel_module.mel_bank())
    # float32 against float64: worst case measured 3.2e-6; Essentia's own float32 differed from
    # ours by at most 4.7e-5 on six real clips. A periodic Hann window is off by 2e-3.
    np.testing.assert_allclose(found.numpy(), reference_mel(clip.numpy()), rtol=0, atol=3e-5)


def test_log_mel_has_the_packages_frames() -> None:
    bank = mel_module.mel_bank()
    assert bank.shape == (1025, 96)
    torch.testing.assert_close(bank.sum(dim=0), torch.ones(96))
    # 220,500 samples gave 217 frames with Essentia itself, 308,700 gave 303.
    assert mel_module.log_mel(torch.zeros(220_500), bank).shape == (217, 96)
    assert mel_module.log_mel(torch.zeros(308_700), bank).shape == (303, 96)


@needs_aisfx
def test_aisfx_windows_and_mean(encoders: dict[str, FrozenEncoder]) -> None:
    encoder = encoders["aisfx"]
    clip = noise(1, 44_100 * 5)
    spectrogram = reference_mel(clip[0].numpy()) / 9.457798957824707
    starts = range(0, len(spectrogram) - 99, 50)  # a last partial window is left out
    windows = np.stack([spectrogram[start : start + 100] for start in starts])
    with torch.no_grad():
        parts = encoder.net(torch.from_numpy(windows).float())
    expected = F.normalize(parts.mean(dim=0), dim=0)
    # worst case measured 3e-8
    torch.testing.assert_close(encoder.encode(clip)[0], expected, rtol=0, atol=1e-6)


@needs_aisfx
def test_aisfx_network_is_all_loaded(encoders: dict[str, FrozenEncoder]) -> None:
    path = fetched_path("aisfx") / "checkpoint.pth"
    weights = aisfx_module.open_checkpoint(path, ("embedding_net.",))
    for name, value in encoders["aisfx"].net.state_dict().items():
        assert torch.equal(value, weights[f"0/embedding_net.{name}"])


@needs_aisfx
def test_changed_aisfx_code_is_not_run(tmp_path: Path) -> None:
    code = tmp_path / "cnn2d.py"
    code.write_text("raise SystemExit('this ran')")
    with pytest.raises(ModelError, match="was changed .*safe-train fetch aisfx"):
        aisfx_module._code(code)


def test_aisfx_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_PROBE_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="safe-train fetch aisfx"):
        load_audio_encoder("aisfx")


@needs_aisfx
def test_aisfx_hears_what_is_alike(shared: Path, encoders: dict[str, FrozenEncoder]) -> None:
    encoder = encoders["aisfx"]
    folder = shared / "data" / "real-sounds" / "audio" / "test"
    rows = (shared / "data" / "real-sounds" / "test.csv").read_text().splitlines()[1:]
    captions: dict[str, str] = {}
    for _, video, start, caption in (row.split(",", 3) for row in rows):
        captions.setdefault(f"{video}_{start}", caption)
    groups: dict[str, list[str]] = {}
    for clip, caption in captions.items():
        groups.setdefault(caption, []).append(clip)
    chosen = [clip for clips in groups.values() if len(clips) > 1 for clip in clips[:2]][:12]
    assert len(chosen) >= 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embeddings = torch.cat([encoder.encode(read(folder / f"{c}.ogg")) for c in chosen])
    likeness = embeddings @ embeddings.T
    same = torch.tensor([[captions[a] == captions[b] for b in chosen] for a in chosen])
    apart = ~torch.eye(len(chosen), dtype=torch.bool)
    assert likeness[same & apart].mean() > likeness[~same].mean() + 0.03


def read(path: Path) -> Tensor:
    samples, rate = soundfile.read(path, dtype="float32")
    return torch.from_numpy(soxr.resample(samples, rate, 44_100))[None]
