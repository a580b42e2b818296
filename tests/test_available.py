"""What runs where the configuration's own pieces are missing, and that it is always said."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs.model_configs import get_config
from configs.overrides import apply_values
from safe import available
from safe.available import absolute_paths, use_what_is_here


@pytest.fixture(autouse=True)
def _nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(available, "weights_available", lambda name: name == "embedded")
    monkeypatch.chdir(tmp_path)


def test_missing_pieces_are_replaced_and_named() -> None:
    config, lines = use_what_is_here(get_config("phase1"), ())
    assert (config.model.backbone, config.model.audio_encoder, config.data.root) == (
        "embedded", "embedded", "synthetic",
    )  # fmt: skip
    backbone, encoder, data = lines
    assert "llava-hf/llava-1.5-13b-hf is not on this machine" in backbone
    assert "hf download llava-hf/llava-1.5-13b-hf" in backbone and "--backbone smollm2" in backbone
    assert "--audio-encoder laion-clap:CHECKPOINT.pt" in encoder and "aisfx" in encoder
    assert "experiments/full_training/data/audiocaps is not there" in data and "--data" in data
    same = replace(config, model=get_config("phase1").model, data=get_config("phase1").data)
    assert same == get_config("phase1")  # nothing else changes


@pytest.mark.parametrize("key", ["model.backbone", "model.audio_encoder", "data.root"])
def test_what_was_asked_for_by_name_is_never_replaced(key: str) -> None:
    config, lines = use_what_is_here(get_config("phase1"), {key})
    section, name = key.split(".")
    before = getattr(getattr(get_config("phase1"), section), name)
    assert getattr(getattr(config, section), name) == before and len(lines) == 2


def test_what_is_here_is_used_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "weights_available", lambda _name: True)
    (tmp_path / "experiments/full_training/data/audiocaps").mkdir(parents=True)
    config = apply_values(get_config("phase1"), {"model.audio_encoder": "laion-clap:clap.pt"})
    assert use_what_is_here(config, {"model.audio_encoder"}) == (config, [])
    assert use_what_is_here(get_config("demo"), ()) == (get_config("demo"), [])


def test_paths_become_absolute_and_names_stay(tmp_path: Path) -> None:
    for folder in ("backbone", "embedded", "smollm2", "clips"):
        (tmp_path / folder).mkdir()
    (tmp_path / "clap.pt").touch()

    def paths(backbone: str, encoder: str, root: str) -> tuple[str, str, str]:
        values = {"model.backbone": backbone, "model.audio_encoder": encoder, "data.root": root}
        config = absolute_paths(apply_values(get_config("phase1"), values))
        assert absolute_paths(config) == config
        return config.model.backbone, config.model.audio_encoder, config.data.root

    here = str(tmp_path)
    assert paths("backbone", "laion-clap:clap.pt", "clips") == (
        f"{here}/backbone", f"laion-clap:{here}/clap.pt", f"{here}/clips",
    )  # fmt: skip
    assert paths("./backbone", "hf:backbone", "clips") == (
        f"{here}/backbone", f"hf:{here}/backbone", f"{here}/clips",
    )  # fmt: skip
    for name in ("embedded", "smollm2", "llava-hf/llava-1.5-7b-hf"):  # also beside such a folder
        assert paths(name, "hf:laion/clap-htsat-unfused", "synthetic") == (
            name, "hf:laion/clap-htsat-unfused", "synthetic",
        )  # fmt: skip
    assert paths("embedded", "aisfx", "~/clips")[2] == str(Path.home() / "clips")
