"""Probing a run while it trains changes nothing of it and survives an interruption."""

import io
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.errors import ConfigError
from configs.overrides import apply_values, dotted_fields
from configs.schema import RunConfig
from probes import PROBES
from probes.errors import ProbeError, RecordError
from probes.findings.judge import judge
from probes.record import RecordLog
from safe.cli import main
from safe.training.callbacks import Callback, Step
from safe.training.launch import Launch
from safe.training.run import Interrupted, resume, start
from safe.training.stage_a import StageA
from safe_probe.watch import ProbeWatch

ENDS = ("magnitude", "gates", "influence", "data")
"""A quick choice; all probes are in one test of their own."""


def watch() -> ProbeWatch:
    return ProbeWatch(2, ends=ENDS)


pytestmark = pytest.mark.usefixtures("in_small_world")


class StopAt(Callback):
    """Ends the process's training at the end of a step, politely or like a power cut."""

    def __init__(self, step: int, polite: bool) -> None:
        self.step, self.polite = step, polite

    def on_step_end(self, trainer: StageA, step: Step) -> None:
        if step.step == self.step:
            if not self.polite:
                raise RuntimeError("power cut")
            os.kill(os.getpid(), signal.SIGTERM)


def launch(output: Path) -> Launch:
    return Launch(console=Console(file=io.StringIO()), output=output, name="run", device="cpu")


def train(config: RunConfig, output: Path, callbacks: Sequence[Callback]) -> Path:
    start(config, dotted_fields(), launch(output), callbacks)
    return output / "run"


@pytest.fixture(scope="module")
def watched(
    tiny_run: Any, in_small_world: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:  # fmt: skip
    """The folder of the tiny run, watched every second step."""
    return train(tiny_run.config, tmp_path_factory.mktemp("watched"), [watch()])


def test_watched_run_is_the_same_to_the_byte(watched: Path, tiny_run: Any) -> None:
    names = ("adapter", "checkpoints", "captions")
    files = [f for n in names for f in (tiny_run.folder / n).rglob("*") if f.is_file()]
    assert len(files) > 8
    for file in [*files, tiny_run.folder / "metrics.jsonl", tiny_run.folder / "evaluation.json"]:
        twin = watched / file.relative_to(tiny_run.folder)
        assert twin.read_bytes() == file.read_bytes(), file


def test_every_probe_leaves_a_training_with_retention_and_warmup_as_it_is(
    tiny_data: Path, make_tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_tiny_config(
        tiny_data, retention__variant="full_retention", retention__every=2,
        model__fusion__gate_warmup_steps=2, optim__max_steps=2,
    )  # fmt: skip
    alone = train(config, tmp_path / "alone", [])
    seen = train(config, tmp_path / "seen", [ProbeWatch(1, probes=PROBES)])
    adapter = ("adapter_model", "safe_adapter")
    for name in ("metrics.jsonl", *(f"adapter/{a}.safetensors" for a in adapter)):
        assert (seen / name).read_bytes() == (alone / name).read_bytes()
    log = RecordLog.read(seen / "probes.jsonl")
    assert {r.probe for r in log} == set(PROBES) and {r.step for r in log} == {0, 1, 2}


def test_a_gate_that_warms_up_is_first_measured_as_the_first_step_opens_it(
    tiny_run: Any, tmp_path: Path
) -> None:
    """Before any step the warm-up keeps it shut: nothing would be heard, and no gradient flow."""
    values = {"model.fusion.gate_warmup_steps": 4, "optim.max_steps": 1}
    config = apply_values(tiny_run.config, values)
    folder = train(config, tmp_path, [ProbeWatch(ends=("magnitude", "gates", "gradflow"))])
    before = [r for r in RecordLog.read(folder / "probes.jsonl") if r.step == 0]
    gates = {r.value for r in before if r.statistic == "contribution_median"}
    assert gates and min(gates) > 0
    found = {finding.code: finding.measured for finding in judge(before)}
    assert "SP301" not in found and "SP201" not in found
    # and that one step of four will not open it
    assert found["SP202"] == "the outer gate will be 0.25 at the last step"


def test_a_broken_path_is_said_before_the_first_step_is_taken(
    tiny_run: Any, tmp_path: Path
) -> None:
    said: dict[str, list[str]] = {"mean": [], "own": []}
    for audio, lines in said.items():
        config = apply_values(tiny_run.config, {"data.audio": audio, "optim.max_steps": 1})
        train(config, tmp_path / audio, [ProbeWatch(ends=("data",), say=lines.append)])
    (line,) = said["mean"]
    assert line.startswith(
        "before the first step: broken at signal: Every clip is the same (SP609)"
    )
    assert said["own"] == []


def test_rows_of_the_chosen_steps_agree_with_the_metrics(watched: Path) -> None:
    log = RecordLog.read(watched / "probes.jsonl")
    assert sorted({r.step for r in log}) == [0, 1, 2, 4, 6]
    for step in (0, 6):  # all of them at both ends
        assert {r.probe for r in log.select(step=step)} == set(ENDS)
    assert {r.probe for r in log if 0 < r.step < 6} == {"magnitude", "gates"}
    rows = [json.loads(line) for line in (watched / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: row for row in rows if row["kind"] == "step"}
    log = log.select(probe="gates")
    layers = {r.layer for r in log.select(statistic="raw")}
    assert layers and all(f"gate/{layer}" in steps[1] for layer in layers)
    for step in (1, 2, 4, 6):
        for layer in layers:
            raw = log.value(step=step, statistic="raw", layer=layer)
            moved = log.value(step=step, statistic="moved", layer=layer)
            first = log.value(step=0, statistic="raw", layer=layer)
            if step < 6:  # what the next step began with
                assert raw == steps[step + 1][f"gate/{layer}"]
            assert first is not None and moved == abs(raw - first)


class GateGradients(Callback):
    """Keeps what every step's backward passes have left."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[int, float]] = {}

    def on_gradients(self, trainer: StageA, step: int) -> None:
        blocks = trainer.model.fusion.blocks().items()
        gates = {layer: block.residual.residual_scale.grad for layer, block in blocks}
        assert all(gradient is not None for gradient in gates.values())
        self.seen[step] = {layer: gates[layer].item() for layer in gates}  # type: ignore[union-attr]


def test_between_the_ends_a_gates_gradient_is_that_of_the_step(
    tiny_run: Any, tmp_path: Path
) -> None:
    config = apply_values(tiny_run.config, {"optim.max_steps": 3})
    steps = GateGradients()
    folder = train(config, tmp_path, [ProbeWatch(1, ends=("gates",)), steps])
    log = RecordLog.read(folder / "probes.jsonl").select(probe="gates", statistic="gradient")
    found = {step: {r.layer: r.value for r in log if r.step == step} for step in (1, 2, 3)}
    assert found[1] == steps.seen[1] and found[2] == steps.seen[2]
    assert found[3] and found[3] != steps.seen[3]  # the end is measured on the probes' own clips


@pytest.mark.parametrize(
    ("step", "polite"), [(1, True), (4, True), (4, False), (6, False), (6, True)]
)
def test_resumed_run_has_the_file_of_an_uninterrupted_one(
    step: int, polite: bool, watched: Path, tiny_run: Any, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted if polite else RuntimeError):
        train(tiny_run.config, tmp_path, [watch(), StopAt(step, polite)])
    resume(tmp_path / "run", launch(tmp_path), [watch()])
    ours = (tmp_path / "run" / "probes.jsonl").read_bytes()
    assert ours == (watched / "probes.jsonl").read_bytes()
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_foreign_file_in_the_way_is_an_error_that_names_it(
    watched: Path, tiny_run: Any, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train(tiny_run.config, tmp_path, [StopAt(2, polite=True)])
    (tmp_path / "run" / "probes.jsonl").write_text("mine\n")
    with pytest.raises(RecordError, match=r"probes\.jsonl, line 1"):
        resume(tmp_path / "run", launch(tmp_path), [watch()])


def test_probe_that_fails_leaves_a_row_and_the_training_goes_on(
    tiny_data: Path, make_tiny_config: Callable[..., RunConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("probes.magnitude.measure", lambda _context: 1 / 0)
    config = make_tiny_config(tiny_data, optim__max_steps=2)
    folder = train(config, tmp_path, [ProbeWatch(1, ends=ENDS)])
    log = RecordLog.read(folder / "probes.jsonl")
    assert log.value(component="magnitude", statistic="not_measured", step=1) == 3
    assert log.value(statistic="raw", step=1) is not None


@pytest.mark.parametrize("every", [0, -3])
def test_impossible_interval_is_refused(every: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        ProbeWatch(every)


def test_unknown_probe_is_refused_before_training() -> None:
    with pytest.raises(ProbeError, match="did you mean 'gates'"):
        ProbeWatch(10, probes=["gate"])


def test_command_line_writes_the_file(tiny_data: Path, tmp_path: Path) -> None:
    small = ["--set", "optim.max_steps=2", "--set", "evaluation.max_new_tokens=4"]
    data = ["--data", str(tiny_data), "--effective-batch", "8", "--device", "cpu"]
    where = ["--output", str(tmp_path), "--name", "run", "--probe-every", "50"]
    assert main(["demo", *small, *data, *where]) in (0, 1)
    assert {r.step for r in RecordLog.read(tmp_path / "run" / "probes.jsonl")} == {0, 1, 2}


def test_zero_probes_nothing(tiny_data: Path, tmp_path: Path) -> None:
    small = ["--set", "optim.max_steps=1", "--set", "evaluation.max_new_tokens=4"]
    data = ["--data", str(tiny_data), "--effective-batch", "8", "--device", "cpu"]
    where = ["--output", str(tmp_path), "--name", "run", "--probe-every", "0"]
    assert main(["demo", *small, *data, *where]) in (0, 1)
    assert not (tmp_path / "run" / "probes.jsonl").exists()


def test_default_looks_once_an_epoch(watched: Path, tiny_run: Any, tmp_path: Path) -> None:
    folder = train(tiny_run.config, tmp_path, [ProbeWatch(ends=ENDS)])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = {row["step"] for row in rows if row["kind"] == "evaluation"}
    assert {r.step for r in RecordLog.read(folder / "probes.jsonl")} == {0, 1, *epochs}


def test_influence_is_measured_on_clips_that_were_not_trained_on(
    watched: Path, tiny_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import safe_probe.watch as module

    seen: dict[str, Any] = {}
    real = module.diagnose

    def spy(model: Any, batches: Any, **options: Any) -> Any:
        seen[options["probes"][0]] = batches
        return real(model, batches, **options)

    monkeypatch.setattr(module, "diagnose", spy)
    train(tiny_run.config, tmp_path, [ProbeWatch(ends=("gates", "influence"), probes=("gates",))])
    held_out, trained = seen["influence"][0].audio, seen["gates"][0].audio
    assert not any((row == other).all() for row in held_out for other in trained)


@pytest.mark.parametrize(("size", "batches", "largest"), [(1, 16, 1), (4, 4, 4), (32, 2, 8)])
def test_batches_are_no_larger_than_the_trainings_and_the_clips_are_as_many(
    size: int, batches: int, largest: int, tiny_run: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import safe_probe.watch as module

    seen: dict[str, list[int]] = {}
    real = module.diagnose

    def spy(model: Any, batches: Any, **options: Any) -> Any:
        seen[options["probes"][0]] = [len(batch.audio) for batch in batches]
        return real(model, batches, **options)

    monkeypatch.setattr(module, "diagnose", spy)
    values = {"optim.batch_size": size, "optim.accumulation": 1, "optim.max_steps": 1}
    config = apply_values(tiny_run.config, values)
    folder = train(config, tmp_path, [ProbeWatch(ends=("gradflow", "influence"), probes=())])
    assert (len(seen["gradflow"]), max(seen["gradflow"])) == (batches, largest)
    assert max(seen["influence"]) <= largest
    log = RecordLog.read(folder / "probes.jsonl")
    assert not log.select(statistic="not_measured").records
    swapped = log.value(step=0, component="signal:swapped", statistic="distinct")
    assert swapped is not None and swapped > 0.8  # a batch of one gets the sound of another batch


def test_end_is_judged_at_the_configured_rate_and_not_at_the_schedules_last(
    tiny_run: Any, tmp_path: Path
) -> None:
    seen: list[float] = []

    class LastRate(Callback):
        def on_train_end(self, trainer: StageA) -> None:
            seen.extend(group["lr"] for group in trainer.optimizer.param_groups)

    folder = train(
        tiny_run.config, tmp_path, [ProbeWatch(ends=("parameters", "gradflow")), LastRate()]
    )
    log = RecordLog.read(folder / "probes.jsonl")
    last = max(r.step for r in log)
    rate = log.value(step=last, probe="parameters", component="projector", statistic="lr_max")
    assert rate == tiny_run.config.optim.lr_projector
    assert max(seen) < tiny_run.config.optim.lr_projector  # and the schedule goes on as it was
    assert "SP313" not in {f.code for f in judge(log)}
