"""Back to the baseline: its settings, this run's pieces and data; said, and started on request."""

import io
import json
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs import follow_up
from configs.errors import CheckpointError
from configs.model_configs import get_config
from configs.schema import RunConfig
from safe import cli
from safe.rollback import describe, rolled_back
from safe.training import run as run_module
from safe.training.run import Interrupted


@pytest.fixture
def phase1_run(tiny_run: Any, tmp_path: Path) -> Path:
    """A folder that was a phase1 run on the tiny clips, with a seed and a split of its own."""
    folder = tmp_path / "a run"
    folder.mkdir()
    config = get_config("phase1").to_dict()
    config["model"] |= {"backbone": "embedded", "audio_encoder": "embedded"}
    config["model"] |= {"hidden_size": 192, "num_layers": 10}
    config["model"]["fusion"] |= {"layers": [2, 4, 6, 8], "lora_rank": 2}
    data = {"root": tiny_run.config.data.root, "test_split": "val", "audio": "mean"}
    config["data"] |= data
    config["optim"] |= {"seed": 11, "epochs": 3, "batch_size": 8, "accumulation": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_baseline_with_the_pieces_and_data_of_the_run(phase1_run: Path) -> None:
    config, explicit = rolled_back(phase1_run)
    full, before = get_config("full"), json.loads((phase1_run / "config.json").read_text())
    assert (config.name, config.optim.seed) == ("full", 11)
    assert (config.model.backbone, config.model.audio_encoder) == ("embedded", "embedded")
    # the same clips, but heard: a blind control is nothing to roll back to
    assert config.data == replace(RunConfig.from_dict(before).data, audio="own")
    assert (config.optim.effective_batch, config.optim.epochs) == (8, 3)
    assert config.model.fusion == full.model.fusion  # adapted to the backbone when it starts
    assert config.model.projector == full.model.projector
    assert config.retention == full.retention and config.optim.lr_projector == 2e-4
    assert {"model.backbone", "model.audio_encoder", "data.root", "optim.seed"} <= explicit
    assert not {key for key in explicit if key.startswith(("model.fusion", "optim.lr"))}


def test_description_names_every_change_and_the_command(phase1_run: Path) -> None:
    config, _ = rolled_back(phase1_run)
    text = describe(phase1_run)
    for line in ("model.projector.scale: 10.0 -> 2.0", "model.projector.num_tokens: 32 -> 16",
                 "model.fusion.lora_rank: 2 -> 1", "model.fusion.layers: (2, 4, 6, 8) -> (2, 3, 6)",
                 "model.fusion.gate_init: 0.3 -> 0.05",
                 "model.fusion.gate_max: 1.0 -> 0.3", "model.fusion.gate_warmup_steps: 0 -> 2000",
                 "optim.lr_projector: 0.001 -> 0.0002",
                 "retention.variant: no_retention -> soft_retention"):  # fmt: skip
        assert f"  {line}\n" in text
    assert "data.audio: mean -> own" in text and text.count("data.") == 1 + text.count(
        "--set data."
    )
    for kept in ("optim.seed:", "optim.epochs:", "optim.batch_size:", "model.backbone:"):
        assert kept not in text
    apply, command = (shlex.split(text.split(mark)[1].splitlines()[0])
                      for mark in ("start it with: ", "which is: "))  # fmt: skip
    assert apply == ["safe-train", "rollback", str(phase1_run), "--apply"]
    # the printed command asks for exactly what --apply starts
    parser, _ = cli._parser()
    asked, explicit = cli._config(parser.parse_args(command[1:]))
    assert asked == config and explicit <= rolled_back(phase1_run)[1]
    assert "--output" not in text


def test_commands_name_the_output_folder_that_was_asked_for(
    phase1_run: Path, tmp_path: Path
) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        assert cli.main(["rollback", str(phase1_run), "--output", str(tmp_path / "my runs")]) == 0
    last_two = [shlex.split(line) for line in out.getvalue().splitlines()[-2:]]
    assert all(words[-2:] == ["--output", str(tmp_path / "my runs")] for words in last_two)


def test_baseline_stops_where_the_run_was_to_stop(phase1_run: Path) -> None:
    path = phase1_run / "config.json"
    values = json.loads(path.read_text())
    values["optim"]["max_steps"] = 7
    path.write_text(json.dumps(values))
    config, _ = rolled_back(phase1_run)
    assert config.optim.max_steps == 7
    assert "--set optim.max_steps=7" in describe(phase1_run)


def test_no_run_no_rollback(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run folder"):
        rolled_back(tmp_path)


def test_command_only_says_unless_told_to_apply(
    phase1_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*args: Any) -> None:
        raise Interrupted("SIGTERM received: saved at step 1 of 9; go on with: ...")

    monkeypatch.setattr(run_module, "start", start)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert cli.main(["rollback", str(phase1_run)]) == 0
        assert cli.main(["rollback", str(phase1_run), "--apply"]) == 3
    assert out.getvalue().count("start it with: ") == 2 and "SIGTERM received" in err.getvalue()


@pytest.mark.usefixtures("in_small_world")
def test_apply_starts_the_baseline_on_the_same_data(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    baseline = get_config("full")
    short = baseline.to_dict()
    short["optim"] |= {"max_steps": 1, "precision": "no"}
    short["model"] |= {"dtype": "float32"}
    short["retention"] |= {"variant": "no_retention"}
    short["evaluation"] |= {"max_new_tokens": 4, "bootstrap": 20}
    monkeypatch.setattr(follow_up, "get_config", lambda _name: RunConfig.from_dict(short))
    out = io.StringIO()
    with redirect_stdout(out):
        code = cli.main(["rollback", str(run), "--apply", "--output", str(tmp_path / "new")])
    assert code == 1  # one step does not verify
    (folder,) = (tmp_path / "new").glob("full-*")
    config = RunConfig.from_dict(json.loads((folder / "config.json").read_text()))
    assert config.data.root == tiny_run.config.data.root and config.model.backbone == "embedded"
    assert config.model.projector == baseline.model.projector
    assert config.model.fusion.layers == (2, 3, 6) and config.model.num_layers == 10
    assert "model.fusion.layers [6, 12, 24] of 40 -> [2, 3, 6] of 10" in out.getvalue()
    assert (folder / "evaluation.json").exists()
