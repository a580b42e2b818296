"""Runs that are stopped, killed or damaged end as the one that nothing happened to."""

import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from configs.errors import CheckpointError, ConfigError, DataError, MetricError
from configs.overrides import apply_values, dotted_fields
from configs.schema import RunConfig
from safe.data.manifests import load_split
from safe.evaluation.evaluate import Evaluation
from safe.training import saving
from safe.training.callbacks import Callback, Step
from safe.training.launch import Launch, engine, require_one_owner
from safe.training.run import Interrupted, resume, start
from safe.training.run_files import tracked_values
from safe.training.stage_a import StageA, TrainingDiverged

pytestmark = pytest.mark.usefixtures("in_small_world")
ConfigMaker = Callable[..., RunConfig]


class SignalAt(Callback):
    """Sends this process a signal at the end of a step."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step_end(self, trainer: StageA, step: Step) -> None:
        if step.step == self.step:
            os.kill(os.getpid(), self.number)


class CrashAt(Callback):
    """Ends the training as a power cut would: nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: StageA, step: Step) -> None:
        if step.step == self.step:
            raise RuntimeError("power cut")


class PoisonAt(Callback):
    """Makes the gradients of a step not finite."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_gradients(self, trainer: StageA, step: int) -> None:
        if step == self.step:
            for parameter in trainer.parameters.values():
                parameter.grad = parameter * float("nan")


def launch(output: Path, name: str = "run") -> Launch:
    console = Console(file=io.StringIO(), width=300)
    return Launch(console=console, output=output, name=name, device="cpu")


def text_of(how: Launch) -> str:
    assert isinstance(how.console.file, io.StringIO)
    return how.console.file.getvalue()


def train(
    config: RunConfig, output: Path, callbacks: Sequence[Callback] = ()
) -> tuple[Evaluation | None, str]:
    how = launch(output)
    return start(config, dotted_fields(), how, callbacks), text_of(how)


def go_on(folder: Path, callbacks: Sequence[Callback] = ()) -> tuple[Evaluation | None, str]:
    how = launch(folder.parent)
    return resume(folder, how, callbacks), text_of(how)


def results(folder: Path) -> dict[str, bytes]:
    """Every file that a run's result consists of; log and environment hold times."""
    names = ("adapter", "captions", "checkpoints")
    files = [f for name in names for f in (folder / name).rglob("*") if f.is_file()]
    files += [folder / n for n in ("metrics.jsonl", "evaluation.json", "problems.json",
                                   "config.json", "config.yaml")]  # fmt: skip
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def assert_same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize("step", [1, 3, 5])
def test_interrupted_run_ends_byte_for_byte_as_an_uninterrupted_one(
    step: int, tiny_run: Any, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted) as stop:
        train(tiny_run.config, tmp_path, [SignalAt(step)])
    folder = tmp_path / "run"
    assert str(stop.value) == (
        f"SIGTERM received: saved at step {step} of 6; "
        f"go on with: safe-train demo --resume {folder}"
    )
    assert not (folder / "adapter").exists() and not (folder / "evaluation.json").exists()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, step + 1))
    evaluation, text = go_on(folder)
    assert f"resumed at step {step} of 6 from" in text
    assert evaluation == tiny_run.evaluation
    ours, reference = results(folder), results(tiny_run.folder)
    if step == 5:  # the two newest are kept, and the interruption left one more
        ours = {n: b for n, b in ours.items() if "checkpoints/step-00000005" not in n}
        reference = {n: b for n, b in reference.items() if "checkpoints/step-00000003" not in n}
    assert_same(ours, reference)
    assert "SIGTERM received" in (folder / "log.txt").read_text()
    assert (tmp_path / "latest").resolve() == folder


def test_a_device_map_is_the_same_training_and_goes_on_exactly(
    tiny_run: Any, tmp_path: Path
) -> None:
    """accelerate spreads the layers by hooks; on a CPU all of them lie there."""
    config = apply_values(tiny_run.config, {"model.device_map": "auto"})
    with pytest.raises(Interrupted):
        train(config, tmp_path, [SignalAt(4)])
    go_on(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["device_map"]
    found, expected = results(tmp_path / "run"), results(tiny_run.folder)
    same = [
        name
        for name in expected.keys() & found.keys()
        if name.endswith((".safetensors", "metrics.jsonl"))
    ]
    assert len(same) > 4 and [name for name in same if found[name] != expected[name]] == []


def test_retention_and_gate_warmup_resume_exactly(
    tiny_data: Path, make_tiny_config: ConfigMaker, tmp_path: Path
) -> None:
    config = make_tiny_config(
        tiny_data, retention__variant="full_retention", retention__every=2,
        model__fusion__gate_warmup_steps=5, optim__max_steps=4, evaluation__every_epochs=2,
    )  # fmt: skip
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "cut", [SignalAt(2, signal.SIGUSR1)])
    go_on(tmp_path / "cut" / "run")
    whole, cut = (results(tmp_path / name / "run") for name in ("whole", "cut"))
    for name in ("metrics.jsonl", "adapter/safe_adapter.safetensors", "evaluation.json",
                 "checkpoints/step-00000004/optimizer.safetensors",
                 "checkpoints/step-00000004/retention.safetensors"):  # fmt: skip
        assert whole[name] == cut[name], name
    rows = [json.loads(line) for line in whole["metrics.jsonl"].splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["outer_gate"] for row in steps] == [0.2, 0.4, 0.6, 0.8]
    assert steps[0]["retention"] == 0.0  # nothing has drifted yet, and the KL is due at step 2
    assert all(row["retention"] > 0 for row in steps[1:])
    saved = json.loads(whole["adapter/safe_config.json"])
    assert saved["outer_gate"] == {"value": 1.0, "warmup_step": 4, "warmup_steps": 5}


def test_crash_goes_on_from_the_last_checkpoint(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny_run.config, tmp_path, [CrashAt(5)])
    _, text = go_on(tmp_path / "run")
    assert "resumed at step 3 of 6" in text
    assert_same(results(tmp_path / "run"), results(tiny_run.folder))


def test_crash_before_the_first_checkpoint_begins_again(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny_run.config, tmp_path, [CrashAt(2)])
    _, text = go_on(tmp_path / "run")
    assert "resumed" not in text
    assert_same(results(tmp_path / "run"), results(tiny_run.folder))


def test_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(
    tiny_run: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    damaged = folder / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    _, text = go_on(folder)
    assert "checkpoint step-00000006 is damaged" in text and "resumed at step 3 of 6" in text
    aside = folder / "checkpoints" / "step-00000006.corrupt"
    assert aside.is_dir() and str(aside) in text
    shutil.rmtree(aside)
    assert_same(results(folder), results(tiny_run.folder))


@pytest.mark.parametrize("which", [1, 2, 3])
def test_signal_during_an_evaluation_cuts_it_and_resume_repeats_it(
    which: int, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safe.evaluation import evaluate

    generate, calls = evaluate.generate_captions, []

    def interrupted(*args: Any, **kwargs: Any) -> list[str]:
        calls.append(1)
        if len(calls) == which:  # 1 and 2: after an epoch; 3: the final one
            os.kill(os.getpid(), signal.SIGUSR2)
        return generate(*args, **kwargs)

    monkeypatch.setattr(evaluate, "generate_captions", interrupted)
    with pytest.raises(Interrupted, match="SIGUSR2 received: saved at step"):
        train(tiny_run.config, tmp_path, ())
    folder = tmp_path / "run"
    assert len(calls) == which and (folder / "adapter").exists() == (which == 3)
    assert (folder / "metrics.jsonl").read_text().count('"evaluation"') == min(which - 1, 2)
    go_on(folder)
    assert_same(results(folder), results(tiny_run.folder))


def test_finished_run_resumes_to_the_same_end(tiny_run: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    evaluation, _ = go_on(folder)
    assert evaluation == tiny_run.evaluation
    assert_same(results(folder), results(tiny_run.folder))


def test_diverged_run_is_saved_and_can_go_on(
    tiny_data: Path, make_tiny_config: ConfigMaker, tmp_path: Path
) -> None:
    config = make_tiny_config(tiny_data, optim__max_bad_steps=1, optim__max_steps=4)
    with pytest.raises(TrainingDiverged, match="1 steps in a row.*the last finite state is saved"):
        train(config, tmp_path, [PoisonAt(3)])  # at the end of an epoch
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    skipped = json.loads(rows[2])
    assert skipped["skipped"] is True and skipped["grad_norm/total"] is None
    clips = skipped["skipped_clips"]
    assert clips and set(clips) <= {clip.id for clip in load_split(tiny_data, "train")}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "step 3 skipped: loss" in log and f"is not finite; clips {clips[0]}" in log
    evaluation, text = go_on(tmp_path / "run")
    # the end says how many were skipped, also in a file
    assert "1 of 4 steps were skipped, because loss or gradient was not finite" in text
    assert "4, 1 of them skipped" in (tmp_path / "run" / "log.txt").read_text()
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "evaluation" and last["skipped_steps"] == 1
    assert "resumed at step 3 of 4" in text and evaluation is not None


def test_long_epochs_are_saved_in_between(
    tiny_data: Path, make_tiny_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_SAVE_SECONDS", 0.0)
    with pytest.raises(RuntimeError):
        train(make_tiny_config(tiny_data), tmp_path, [CrashAt(3)])
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(names) == ["step-00000001", "step-00000002"]


def test_epoch_is_saved_before_its_evaluation(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> list[str]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("safe.evaluation.evaluate.generate_captions", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tiny_run.config, tmp_path)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]


def test_run_folder_holds_what_is_needed_to_believe_it(tiny_run: Any) -> None:
    names = {path.name for path in tiny_run.folder.iterdir()}
    assert names >= {
        "config.json",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "log.txt",
        "problems.json",
        "evaluation.json",
        "captions",
        "checkpoints",
        "adapter",
    }
    assert RunConfig.from_dict(json.loads((tiny_run.folder / "config.json").read_text())) == (
        tiny_run.config
    )
    log = (tiny_run.folder / "log.txt").read_text()
    for part in ("training from step 0 of 6", "epoch 1: CIDEr", "training complete at step 6"):
        assert part in log
    evaluation = json.loads((tiny_run.folder / "evaluation.json").read_text())
    assert evaluation["scores"]["n_clips"] == 5 and evaluation["scores"]["n_references"] == 25
    assert evaluation["scores"]["tokenizer"] == "simple"
    lines = (tiny_run.folder / "captions" / "final.jsonl").read_text().splitlines()
    assert len(lines) == 5 and set(json.loads(lines[0])) == {
        "clip", "own audio", "another clip's audio", "silence", "gate 0", "commonest caption",
        "nearest neighbour",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        ("one test clip", MetricError, "CIDEr is undefined for a single clip"),
        ("equal sounds", MetricError, "clips cannot all hear another clip's audio"),
        ("overlap by id", DataError, "1 clips are in both 'train' and 'test'"),
        ("overlap by audio", DataError, "1 clips are in both 'train' and 'val'.*0 by recording id"),
        ("no test audio", DataError, "split 'test' has no usable clip"),
    ],
)
def test_data_that_cannot_give_a_score_are_refused_before_training(
    break_it: str, error: type[Exception], message: str, tiny_data: Path,
    make_tiny_config: ConfigMaker, tmp_path: Path,
) -> None:  # fmt: skip
    root = Path(shutil.copytree(tiny_data, tmp_path / "clips"))
    test, train_clips, val = (load_split(root, n) for n in ("test", "train", "val"))
    header, *rows = (root / "test.csv").read_text().splitlines()
    if break_it == "one test clip":
        (root / "test.csv").write_text("\n".join([header, *rows[:5]]) + "\n")
    elif break_it == "equal sounds":
        for clip in test[1:]:
            shutil.copy(str(test[0].path), str(clip.path))
    elif break_it == "overlap by id":
        rows.append(f"999,{train_clips[0].youtube_id},0,a bell rings")
        (root / "test.csv").write_text("\n".join([header, *rows]) + "\n")
        shutil.copy(str(train_clips[0].path), root / "audio" / "test")
    elif break_it == "overlap by audio":
        shutil.copy(str(train_clips[0].path), str(val[0].path))
    else:
        shutil.rmtree(root / "audio" / "test")
    with pytest.raises(error, match=message):
        train(make_tiny_config(root), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_name_of_an_existing_run_is_refused_and_the_run_unharmed(
    tiny_run: Any, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    with pytest.raises(ConfigError, match="exists already; go on with --resume"):
        train(tiny_run.config, tmp_path)
    assert_same(results(tmp_path / "run"), results(tiny_run.folder))


def test_folder_that_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run folder"):
        go_on(tmp_path)


def test_tracker_that_is_not_installed_is_an_error(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safe.training.launch.is_wandb_available", lambda: False)
    how = Launch(console=Console(file=io.StringIO()), output=tmp_path, device="cpu", track="wandb")
    with pytest.raises(ConfigError, match="--track wandb: the package is not installed"):
        engine(tiny_run.config, how)


def test_tracker_gets_every_value_of_the_configuration_that_runs(
    tiny_data: Path, make_tiny_config: ConfigMaker, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra 'tracking'")
    config = make_tiny_config(tiny_data, optim__max_steps=1)
    how = replace(launch(tmp_path), track="tensorboard")
    start(config, dotted_fields(), how)
    ran = RunConfig.from_dict(json.loads((tmp_path / "run" / "config.json").read_text()))
    (file,) = tmp_path.rglob("hparams.yml")
    kept = yaml.safe_load(file.read_text())
    assert kept == tracked_values(ran) and kept.keys() == dotted_fields().keys()
    assert kept["model.fusion.layers"] == json.dumps(list(ran.model.fusion.layers))
    assert kept["optim.lr_projector"] == 1e-2 and kept["evaluation.eval_clips"] == "null"


def test_a_device_map_is_for_one_process(tiny_run: Any) -> None:
    spread = apply_values(tiny_run.config, {"model.device_map": "auto"})
    require_one_owner(spread, 1)
    require_one_owner(tiny_run.config, 2)
    with pytest.raises(
        ConfigError, match="'auto' spreads one backbone .* 2 processes would do so 2"
    ):
        require_one_owner(spread, 2)


def test_without_bfloat16_arithmetic_engine_and_config_use_float32(
    tiny_data: Path, make_tiny_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
    config = make_tiny_config(tiny_data, optim__precision="bf16", model__dtype="bfloat16")
    how = launch(tmp_path)
    config, accelerator = engine(config, how)
    assert (config.model.dtype, config.optim.precision) == ("float32", "no")
    assert accelerator.mixed_precision == "no"
    assert "bfloat16 -> float32: this processor has no bfloat16" in text_of(how)


def test_training_that_ends_inside_an_epoch_does_not_round_it_up(
    tiny_data: Path, make_tiny_config: ConfigMaker, tmp_path: Path
) -> None:
    train(make_tiny_config(tiny_data, optim__max_steps=2), tmp_path)
    rows = [json.loads(r) for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluation = rows[-1]
    assert evaluation["kind"] == "evaluation" and evaluation["step"] == 2
    assert evaluation["epoch"] == pytest.approx(2 / 3)  # an epoch of the tiny data has three steps
    assert (tmp_path / "run" / "captions" / "step-00000002.jsonl").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:99", "--device cuda:99: this machine has [0-9]+ CUDA devices"),
        ("gpu", "--device gpu: unknown; allowed: auto, cpu, cuda, cuda:N"),
    ],
)
def test_device_that_is_not_there_is_an_error(tiny_run: Any, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(tiny_run.config, Launch(Console(file=io.StringIO()), device=name))


def test_output_that_cannot_be_written_is_found_first(tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no folder that can be written to"):
        train(tiny_run.config, tmp_path / "file" / "runs")
