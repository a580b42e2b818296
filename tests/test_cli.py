"""safe-train's commands: quick to answer, exact in their errors, the same from any folder."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from configs.model_configs import CONFIGS
from safe import cli
from safe.training import run as run_module
from safe.training.run import Interrupted

HEAVY = ("torch", "transformers", "peft", "accelerate", "numpy", "soundfile", "pycocoevalcap")


def call(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    "words",
    [("--help",), ("phase1", "--help"), ("evaluate", "--help"), ("data", "check", "--help"),
     ("fetch", "--help"), ("plan", "--help"), ("rollback", "--help"), ("list",),
     ("show", "phase1"), ("phas1",)],
    ids=" ".join,
)  # fmt: skip
def test_command_that_trains_nothing_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom safe.cli import main\n"
        f"try:\n    main({list(words)!r})\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout[-200:]


def test_list_and_show_print_every_config() -> None:
    code, table, _ = call("list")
    assert code == 0 and all(name in table for name in CONFIGS)
    for name in CONFIGS:
        code, text, _ = call("show", name, "--set", "optim.epochs=77")
        assert code == 0 and f"name: {name}" in text and "epochs: 77" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["phas1"], "ConfigError: unknown config or command 'phas1'; did you mean 'phase1'? "
         "known: demo, full, phase1, phase2, evaluate, "),
        (["evalute", "runs/latest"], "ConfigError: unknown config or command 'evalute'; did you "
         "mean 'evaluate'? known: "),
        (["show", "phas1"], "ConfigError: unknown config 'phas1'; did you mean 'phase1'? known: "),
        (["show", "demo", "--set", "optim.lr_projectr=1"], "ConfigError: unknown key "
         "'optim.lr_projectr'; did you mean 'optim.lr_projector'?"),
        (["demo", "--set", "optim.epochs"], "ConfigError: --set 'optim.epochs': must be key=value"),
        (["demo", "--epochs", "0"], "ConfigError: optim.epochs = 0: must be at least 1"),
        (["demo", "--effective-batch", "0"], "ConfigError: effective batch = 0: must be at least"),
        (["demo", "--resume", "nowhere"], "CheckpointError: nowhere is no run folder"),
        (["demo", "--resume", "nowhere", "--epochs", "3", "--set", "optim.seed=1"],
         "ConfigError: --resume goes on with the configuration of the run; leave out --epochs, "
         "--set, or start a new run"),
        (["demo", "--resume", "nowhere", "--name", "x"], "leave out --name"),
        (["evaluate", "nowhere"], "is no run folder"),
        (["rollback", "nowhere"], "CheckpointError: nowhere is no run folder"),
        (["fetch", "smolm2"], "'smolm2'"),
        (["data", "check", "nowhere"], "nowhere"),
        (["phase1", "--config", "nowhere.yaml"], "ConfigError: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*words)
    assert code == 2 and message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [(), ("demo", "--nonsense"), ("demo", "--epochs", "many"), ("data",)], ids=" ".join
)
def test_wrong_usage_shows_the_usage(words: tuple[str, ...]) -> None:
    code, _, err = call(*words)
    assert code == 2 and "usage: safe-train" in err


def test_interrupted_run_exits_with_3_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise Interrupted("SIGTERM received: saved at step 3 of 6; go on with: safe-train demo")

    monkeypatch.setattr(run_module, "start", stopped)
    code, _, err = call("demo", "--output", str(tmp_path), "--device", "cpu")
    assert code == 3 and err.startswith("SIGTERM received: saved at step 3 of 6")

    def second_ctrl_c(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "start", second_ctrl_c)
    code, _, err = call("demo", "--output", str(tmp_path), "--device", "cpu")
    assert code == 3 and err.startswith("interrupted")


def test_flags_reach_the_run_as_configuration_and_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(run_module, "start", lambda *args: seen.append(args))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text("optim:\n  weight_decay: 0.5\n")
    (tmp_path / "clips").mkdir()
    code, _, _ = call(
        "phase1", "--backbone", "embedded", "--audio-encoder", "embedded", "--data", "clips",
        "--epochs", "3", "--seed", "7", "--effective-batch", "24", "--output", "there", "--name",
        "mine", "--device", "cpu", "--config", "more.yaml", "--set", "model.projector.scale=2.5",
    )  # fmt: skip
    assert code == 0
    config, explicit, launch, watchers = seen[0]
    assert [type(watcher).__name__ for watcher in watchers] == ["ProbeWatch"]
    assert (config.model.backbone, config.optim.epochs, config.optim.seed) == ("embedded", 3, 7)
    assert config.optim.effective_batch == 24 and config.optim.weight_decay == 0.5
    assert config.model.projector.scale == 2.5
    assert config.data.root == str(tmp_path / "clips")  # resumes from any folder
    assert {
        "model.backbone",
        "data.root",
        "optim.weight_decay",
        "model.projector.scale",
    } <= explicit
    assert (launch.output, launch.name, launch.device) == (Path("there"), "mine", "cpu")


def test_machine_without_the_weights_is_told_what_runs_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "start", lambda *_args: None)
    monkeypatch.setattr("safe.available.weights_available", lambda name: name == "embedded")
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("phase1")
    assert code == 0
    for part in ("backbone llava-hf/llava-1.5-13b-hf is not on this machine: using the embedded",
                 "safe-train fetch smollm2", "audio encoder laion-clap needs a checkpoint",
                 "data experiments/full_training/data/audiocaps is not there"):  # fmt: skip
        assert part in out


@pytest.fixture
def spoiled_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose own modules would break everything if they were imported."""
    for name in ("configs", "probes", "reports", "safe", "safe_probe", "embedded", "smollm2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("in_small_world")
def test_whole_way_from_a_folder_with_the_same_names(
    spoiled_folder: Path, tiny_data: Path, tiny_run: Any
) -> None:
    program = [sys.executable, str(Path(sys.executable).parent / "safe-train")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*program, *words], cwd=spoiled_folder, env=environment, check=False,
                              capture_output=True, text=True, timeout=500)  # fmt: skip

    data = os.path.relpath(tiny_data, spoiled_folder)
    trained = command("demo", "--data", data, "--device", "cpu", "--name", "mine",
                      "--set", "optim.max_steps=2", "--set", "evaluation.max_new_tokens=4",
                      "--set", "evaluation.bootstrap=20")  # fmt: skip
    assert trained.returncode == 1, trained.stdout + trained.stderr  # two steps do not verify
    folder = spoiled_folder / "runs" / "mine"
    for part in ("the clip's own audio", "control: another clip's audio", "control: silence",
                 "control: gate 0", "no model: commonest caption", "no model: nearest neighbour",
                 "BLOCKED: ", "next: ", f"everything is in {folder}"):  # fmt: skip
        assert part in trained.stdout
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert "<html" in (folder / "report.html").read_text() and "report: " in trained.stdout
    scored = command("evaluate", "runs/latest", "--device", "cpu")
    assert scored.returncode == 1, scored.stdout + scored.stderr
    ours = json.loads((folder / "evaluations" / "adapter-test" / "evaluation.json").read_text())
    assert ours == json.loads((folder / "evaluation.json").read_text())


def test_resume_of_another_config_says_which(tiny_run: Any) -> None:
    code, _, err = call("phase1", "--resume", str(tiny_run.folder))
    assert code == 2
    assert (
        f"{tiny_run.folder} is a run of 'demo', not of 'phase1'; go on with: safe-train demo" in err
    )


@pytest.mark.usefixtures("in_small_world")
def test_resume_of_a_finished_run_prints_its_result(tiny_run: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    code, out, _ = call("demo", "--resume", str(folder), "--device", "cpu")
    assert code == 1 and "resumed at step 6 of 6" in out and f"everything is in {folder}" in out


def test_page_that_cannot_be_written_costs_nothing(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from rich.console import Console

    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reports.html.write", full)
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    out = io.StringIO()
    assert cli._report(folder, Console(file=out, width=100)) == 1
    assert "No space left on device" in out.getvalue() and "next: " in out.getvalue()
    assert not (folder / "report.html").exists()


def test_data_check_says_what_is_there_and_what_is_wrong(tiny_data: Path, tmp_path: Path) -> None:
    code, out, _ = call("data", "check", str(tiny_data))
    assert code == 0 and "train" in out and "22" in out
    root = Path(shutil.copytree(tiny_data, tmp_path / "clips"))
    next((root / "audio" / "train").iterdir()).write_bytes(b"not audio")
    code, out, _ = call("data", "check", str(root), "--json", str(tmp_path / "report.json"))
    assert code == 0 and "unreadable" in out  # one bad clip is no obstacle, it is left out
    report = json.loads((tmp_path / "report.json").read_text())
    assert "unreadable" in json.dumps(report)
    code, out, _ = call("data", "check", str(root), "--json", "-")
    assert json.loads(out) == report
    shutil.rmtree(root / "audio" / "test")
    assert call("data", "check", str(root))[0] == 1


def test_fetch_prints_what_it_got(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from types import SimpleNamespace

    piece = SimpleNamespace(size=5_000_000, licence="MIT", sha256="ab" * 32, folder=tmp_path)
    monkeypatch.setattr("safe.fetch.fetch", lambda _name, _say: piece)
    code, out, _ = call("fetch", "smollm2", "aisfx")
    assert code == 0 and out.count("5 MB, licence MIT") == 2 and "aisfx: " in out


def test_help_names_every_command() -> None:
    code, out, _ = call("--help")
    assert code == 0
    for name in (*CONFIGS, "evaluate", "data", "fetch", "list", "show", "rollback"):
        assert f"\n    {name}" in out


def test_report_that_cannot_be_written_is_found_before_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safe.data.check.check_root", lambda *_args, **_more: pytest.fail("read"))
    code, _, err = call("data", "check", str(tmp_path), "--json", str(tmp_path / "no" / "a.json"))
    assert code == 2 and err.startswith("FileNotFoundError: ") and err.count("\n") == 1


def test_diverged_run_exits_with_1_because_the_input_may_be_fine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safe.training.stage_a import TrainingDiverged

    def diverges(*_args: Any) -> None:
        raise TrainingDiverged("not finite for 5 steps in a row")

    monkeypatch.setattr(run_module, "start", diverges)
    monkeypatch.chdir(tmp_path)
    code, _, err = call("demo")
    assert (code, err) == (1, "TrainingDiverged: not finite for 5 steps in a row\n")
