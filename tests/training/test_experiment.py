"""What happens before the first step: what is said, left out, refused, and made the same."""

import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from configs.errors import ConfigError, DataError, ModelError
from configs.model_configs import get_config
from configs.overrides import apply_values
from configs.schema import RunConfig
from safe.data.manifests import load_split
from safe.data.mapped_rows import MappedRows
from safe.models.audio_encoders import FrozenEncoder, load_audio_encoder, load_features
from safe.models.audio_encoders.local import LocalFeatures
from safe.training import experiment as experiment_module
from safe.training.experiment import Experiment, prepare, silence_embedding
from safe.training.interrupt import Interrupt, Interrupted

pytestmark = pytest.mark.usefixtures("in_small_world")
ConfigMaker = Callable[..., RunConfig]


def prepared(config: RunConfig, explicit: Any = ()) -> tuple[Experiment, str]:
    console = Console(file=io.StringIO(), width=300)
    experiment = prepare(config, Accelerator(cpu=True), console, explicit)
    assert isinstance(console.file, io.StringIO)
    return experiment, console.file.getvalue()


def test_same_seed_same_model_other_seed_other_model(
    tiny_data: Path, make_tiny_config: ConfigMaker
) -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(99 + seed)  # what happened before does not matter
        np.random.seed(7)
        experiment, _ = prepared(make_tiny_config(tiny_data, optim__seed=seed))
        groups = experiment.model.trainable_groups().values()
        weights.append(torch.cat([p.detach().flatten() for g in groups for p in g.values()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_experiment_holds_the_three_splits_and_every_caption(
    tiny_data: Path, make_tiny_config: ConfigMaker
) -> None:
    experiment, text = prepared(make_tiny_config(tiny_data, evaluation__eval_clips=2))
    assert [len(s) for s in (experiment.train, experiment.validation, experiment.test)] == [
        22,
        2,
        5,
    ]
    assert len(experiment.dataset) == 22 and not experiment.sounds.problems
    assert f"data: 22 train, 4 val, 5 test clips in {tiny_data}" in text
    assert "22 train, 4 val, 5 test clips heard by embedded" in text
    clips = load_split(tiny_data, "test")
    assert experiment.test.references == {clip.id: list(clip.captions) for clip in clips}


def test_config_of_another_backbone_is_adapted_line_by_line(
    tiny_data: Path,
) -> None:
    values = {"model.backbone": "embedded", "model.audio_encoder": "embedded",
              "data.root": str(tiny_data), "model.dtype": "float32"}  # fmt: skip
    asked = apply_values(get_config("phase1"), values)
    experiment, text = prepared(asked, values)
    config = experiment.config
    assert (config.model.hidden_size, config.model.num_layers) == (192, 10)
    assert config.model.fusion.layers == (2, 4, 6, 8) and config.model.fusion.lora_rank == 2
    assert (config.optim.batch_size, config.optim.accumulation) == (32, 4)
    for line in ("model.fusion.layers [8, 16, 24, 32] of 40 -> [2, 4, 6, 8] of 10",
                 "model.fusion.lora_rank 64 of 5120 -> 2 of 192",
                 "optim.batch_size x accumulation 4 x 32 -> 32 x 4"):  # fmt: skip
        assert text.count(line) == 1
    # what is saved with the run is what runs: adapting it again changes nothing
    again, text = prepared(config)
    assert again.config == config and "->" not in text


def test_long_captions_are_cut_and_that_is_said(
    tiny_data: Path, make_tiny_config: ConfigMaker
) -> None:
    experiment, text = prepared(make_tiny_config(tiny_data, data__max_caption_tokens=4))
    cut = experiment.dataset.truncated
    assert 0 < cut <= 22 and max(experiment.dataset.lengths()) == 5  # and the end token
    assert f"{cut} of 22 training captions are cut to data.max_caption_tokens = 4 tokens" in text


def test_unusable_clip_is_listed_once_with_its_reason_and_left_out(
    tiny_data: Path, make_tiny_config: ConfigMaker, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny_data, tmp_path / "clips"))
    clips = load_split(root, "train")
    Path(str(clips[3].path)).write_bytes(b"not audio at all")
    Path(str(clips[8].path)).unlink()
    experiment, text = prepared(make_tiny_config(root))
    assert "2 of 31 clips are unusable and left out:" in text
    for clip, reason in ((clips[3], "unreadable"), (clips[8], "missing")):
        assert text.count(clip.id) == 1 and f"train {clip.id}: {reason}" in text
        assert clip.id not in experiment.train.clip_ids
    assert len(experiment.train) == len(experiment.dataset) == 20
    assert [p.reason for p in experiment.sounds.problems] == ["unreadable", "missing"]


def test_many_unusable_clips_are_counted_not_all_printed(
    tiny_data: Path, make_tiny_config: ConfigMaker, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny_data, tmp_path / "clips"))
    for clip in load_split(root, "train")[:9]:
        Path(str(clip.path)).unlink()
    experiment, text = prepared(make_tiny_config(root))
    assert text.count(": missing") == 5 and "... and 4 more, listed in problems.json" in text
    assert len(experiment.sounds.problems) == 9


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"data__root": "/nowhere/at/all"}, DataError, "/nowhere/at/all"),
        ({"data__train_split": "training"}, DataError, "training"),
        ({"model__backbone": "/no/such/model"}, ModelError, "no such model folder"),
        ({"model__audio_encoder": "embeded"}, ModelError, "embeded"),
    ],
)
def test_missing_pieces_are_named(
    values: dict[str, str], error: type[Exception], message: str, tiny_data: Path,
    make_tiny_config: ConfigMaker,
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        prepared(make_tiny_config(tiny_data, **values))


def test_deaf_control_hears_the_training_mean_everywhere(
    tiny_data: Path, make_tiny_config: ConfigMaker
) -> None:
    hearing, _ = prepared(make_tiny_config(tiny_data))
    deaf, text = prepared(make_tiny_config(tiny_data, data__audio="mean"))
    mean = hearing.train.embeddings.mean(axis=0)
    for split in (deaf.train, deaf.validation, deaf.test):
        assert all(np.array_equal(row, mean) for row in split.embeddings)
    assert "no clip is heard" in text and "no clip is heard" not in _
    assert deaf.test.captions == hearing.test.captions


def test_silence_is_what_the_encoder_hears_in_zeros(
    tiny_data: Path, make_tiny_config: ConfigMaker
) -> None:
    experiment, _ = prepared(make_tiny_config(tiny_data))
    encoder = load_audio_encoder("embedded")
    zeros = torch.zeros(1, 4 * encoder.sample_rate)  # the clips last four seconds
    expected = encoder.encode(zeros, torch.tensor([zeros.shape[1]]))[0].numpy()
    assert np.array_equal(experiment.sounds.silence, expected)

    class Broken:
        name, sample_rate, max_seconds = "broken", encoder.sample_rate, 10.0

        def encode(self, *_: torch.Tensor) -> torch.Tensor:
            return torch.full((1, 512), float("nan"))

    with pytest.raises(DataError, match="broken gives NaN or Inf for silence"):
        silence_embedding(Broken(), experiment.train)  # type: ignore[arg-type]


@pytest.mark.parametrize("features", ["pooled", "local"])
def test_the_encoder_goes_to_the_device_of_the_training(features: Any) -> None:
    encoder = load_features("embedded", features, torch.device("meta"))
    network = encoder.encoder if isinstance(encoder, LocalFeatures) else encoder
    assert isinstance(network, FrozenEncoder)
    assert {tensor.device.type for tensor in network.parameters()} == {"meta"}


def test_clips_are_heard_on_that_device(
    tiny_data: Path, make_tiny_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        experiment_module, "load_features", lambda *told: asked.append(told) or load_features(*told)
    )
    prepared(make_tiny_config(tiny_data))
    assert asked == [("embedded", "pooled", torch.device("cpu"))]


def test_signal_while_clips_are_encoded_keeps_what_is_done(
    tiny_data: Path, make_tiny_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAFE_PROBE_CACHE", str(tmp_path))  # nothing is encoded yet
    config = make_tiny_config(tiny_data)
    console = Console(file=io.StringIO(), width=300)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM received: .* of 31 clips are encoded"):
            prepare(config, Accelerator(cpu=True), console, interrupt=interrupt)
    prepared(config)  # and the same command goes on


def test_cheap_mistakes_are_found_before_the_backbone_is_loaded(
    tiny_data: Path, make_tiny_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment_module, "load_backbone", lambda *_a, **_k: pytest.fail("loaded"))
    with pytest.raises(DataError, match="nowhere"):
        prepared(make_tiny_config(tiny_data, data__root="nowhere"))
    with pytest.raises(ModelError, match="unknown audio encoder 'clap'"):
        prepared(make_tiny_config(tiny_data, model__audio_encoder="clap"))


def test_retention_without_pictures_is_said(tiny_data: Path, make_tiny_config: ConfigMaker) -> None:
    line = "retention asks about texts alone: embedded is shown no pictures"
    for variant, said in (("soft_retention", 1), ("nullspace_retention", 0), ("no_retention", 0)):
        _, text = prepared(make_tiny_config(tiny_data, retention__variant=variant))
        assert text.count(line) == said, variant


def test_the_prompt_is_printed(tiny_data: Path, make_tiny_config: ConfigMaker) -> None:
    _, text = prepared(make_tiny_config(tiny_data))
    assert "prompt: 'Describe the sound:\\n'" in text
    _, text = prepared(make_tiny_config(tiny_data, model__prompt="What is that? "))
    assert "prompt: 'What is that? '" in text


LOCAL = {"model__projector__kind": "resampler", "model__audio_features": "local"}


def test_local_features_stay_on_disk_and_set_the_width(
    tiny_data: Path, make_tiny_config: ConfigMaker
) -> None:
    pooled, _ = prepared(make_tiny_config(tiny_data))
    local, text = prepared(make_tiny_config(tiny_data, **LOCAL))
    assert "model.audio_dim 512 -> 192: width of the local features of embedded" in text
    assert isinstance(local.train.embeddings, MappedRows)
    assert local.train.embeddings.shape == (22, 16, 192)
    assert local.sounds.silence.shape == (16, 192)
    batch = local.dataset.batch([3, 3, 0])
    assert batch.audio.shape == (3, 16, 192) and torch.equal(batch.audio[0], batch.audio[1])
    encoder = load_audio_encoder("embedded")
    assert isinstance(encoder, FrozenEncoder) and encoder.model is not None
    with torch.no_grad():  # what it averages is what the pooled embedding is made of
        mean = torch.from_numpy(local.train.pooled)
        again = torch.nn.functional.normalize(encoder.model.audio_projection(mean), dim=-1)
    np.testing.assert_allclose(again.numpy(), pooled.train.embeddings, atol=1e-5)
    with torch.no_grad():
        assert local.model.audio_tokens(batch.audio)[0].shape == (3, 8, 192)


def test_blind_control_of_local_features(tiny_data: Path, make_tiny_config: ConfigMaker) -> None:
    deaf, _ = prepared(make_tiny_config(tiny_data, data__audio="mean", **LOCAL))
    hearing, _ = prepared(make_tiny_config(tiny_data, **LOCAL))
    mean = np.array(hearing.train.embeddings).mean(axis=0)
    for row in np.asarray(deaf.test.embeddings):
        np.testing.assert_allclose(row, mean, rtol=1e-4, atol=1e-6)


def test_a_width_that_was_set_is_not_changed(
    tiny_data: Path, make_tiny_config: ConfigMaker
) -> None:
    with pytest.raises(ConfigError, match=r"audio_dim = 512: the local features .* are 192 wide"):
        prepared(make_tiny_config(tiny_data, **LOCAL), {"model.audio_dim"})
