"""Reading a run's folder: whatever is missing or damaged, a report comes out or a plain error."""

import json
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import FileError
from reports.errors import ReportError
from reports.report import Report
from reports.run import read_run
from reports.watch import Watched

MakeRun = Callable[..., Path]
FILES = (
    "config.json",
    "metrics.jsonl",
    "probes.jsonl",
    "evaluation.json",
    "captions/final.jsonl",
    "captions/references.jsonl",
    "environment.json",
    "resources.json",
    "problems.json",
)


def test_every_file_is_read(make_whole_run: MakeRun) -> None:
    run = read_run(make_whole_run())
    assert (len(run.steps), len(run.evaluations), run.last_step) == (30, 3, 30)
    assert run.finished and run.epochs_done == 3.0 and not run.running
    assert len(run.captions) == len(run.references) == 40 and run.captions["clip-0001"]["silence"]
    assert run.resources["train_seconds"] == 60.0 and not run.damaged
    assert {r.probe for r in run.log} >= {"scores", "gates", "magnitude"}
    assert {r.step for r in run.start.history} == {0}


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("text", [None, "", "{", "[1]\n", "\x00\xff\n", '{"kind": "step"}\n'])
def test_missing_or_damaged_file_leaves_the_rest(
    make_whole_run: MakeRun, name: str, text: str | None
) -> None:
    path = make_whole_run()
    file = path / name
    file.unlink() if text is None else file.write_text(text, encoding="latin-1")
    report = Report.of(path)
    assert text is not None or not report.run.damaged
    json.dumps(report.to_json(), allow_nan=False)
    if text == "[1]\n":
        kind_is_right = name == "problems.json"
        assert (name in report.run.damaged) is not kind_is_right


def test_last_line_that_was_cut_off_is_normal(make_whole_run: MakeRun) -> None:
    path = make_whole_run()
    file = path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"kind": "step", "st')
    run = read_run(path)
    assert run.last_step == 30 and not run.damaged


def test_check_adds_its_records(make_whole_run: MakeRun, run_rows: dict[str, Any]) -> None:
    from probes.record import RecordLog

    path = make_whole_run(records=None)
    (path / "check").mkdir()
    RecordLog(run_rows["records"]()).write(path / "check" / "records.jsonl")
    assert read_run(path).facts.step("gates") == 30


def test_later_evaluation_stands_in_for_a_missing_one(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    path = make_whole_run(evaluation=None, captions=None)
    later = path / "evaluations" / "adapter-test"
    later.mkdir(parents=True)
    (later / "evaluation.json").write_text(json.dumps(run_rows["scores"](33.0)))
    assert read_run(path).facts.value("scores", "score", "cider") == 33.0
    of_step = path / "evaluations" / "step-00000012-test"
    later.rename(of_step)
    assert not read_run(path).evaluation
    assert read_run(path / "checkpoints" / "step-00000012").evaluation


def test_no_run_is_an_error_that_names_the_runs_beside(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("one")
    make_run("two")
    with pytest.raises(ReportError, match=r"is no run: it has no config\.json; runs in it: one, t"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="is no run"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "one" / "config.json").write_text('{"name": 3}')
    with pytest.raises(ReportError, match=r"config\.json cannot be read"):
        read_run(tmp_path / "one")


@given(name=st.sampled_from(FILES), cut=st.integers(0, 4000), junk=st.binary(max_size=30))
@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_damage_gives_a_report_or_a_plain_error(
    make_whole_run: MakeRun, name: str, cut: int, junk: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    path = path if path.exists() else make_whole_run()
    file = path / name
    whole = file.read_bytes()
    file.write_bytes(whole[:cut] + junk + whole[cut + len(junk) :])
    error: ReportError | None = None
    try:
        json.dumps(Report.of(path).to_json(), allow_nan=False)
    except ReportError as raised:
        error = raised
    finally:
        file.write_bytes(whole)
    assert error is None or (name == "config.json" and "config.json" in str(error))


def test_a_score_too_large_for_a_float(make_whole_run: MakeRun) -> None:
    path = make_whole_run()
    (path / "evaluation.json").write_text(json.dumps({"scores": {"cider": 10**400}}))
    json.dumps(Report.of(path).to_json(), allow_nan=False)


def spoil(file: Path, kind: str) -> None:
    """Put something into a file's place that would hang its reader, or end in a traceback."""
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.write_text("[" * 3000 + "\n")


@pytest.mark.timeout(60)  # a pipe that is opened waits for ever
@pytest.mark.parametrize("kind", ["deep", "pipe", "device"])
@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_read_are_named(make_whole_run: MakeRun, name: str, kind: str) -> None:
    path = make_whole_run()
    spoil(path / name, kind)
    if name == "config.json":
        with pytest.raises(ReportError, match=r"config\.json"):
            read_run(path)
        return
    run = read_run(path)
    json.dumps(Report.of(run).to_json(), allow_nan=False)
    reason = "nested more than 50 deep" if kind == "deep" else "not a regular file"
    assert reason in run.damaged[name]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["deep", "pipe", "device"])
@pytest.mark.parametrize("name", ["run.lock", "metrics.jsonl", "probes.jsonl", "log.txt"])
def test_what_is_watched_hangs_nobody(make_whole_run: MakeRun, name: str, kind: str) -> None:
    path = make_whole_run()
    spoil(path / name, kind)
    fails = kind != "deep" and name != "run.lock"
    with pytest.raises(FileError, match=name) if fails else nullcontext():
        watched = Watched(path)
        assert watched.life().word in ("running", "finished", "stopped")
        watched.last_words()


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "x", [], {}, True, 10**400])
@pytest.mark.parametrize("key", ["step", "epoch", "loss", "grad_norm/adapter"])
def test_strange_metric_values_do_not_break_the_report(
    make_whole_run: MakeRun, run_rows: dict[str, Any], key: str, value: Any
) -> None:
    rows = run_rows["steps"]()
    rows[4][key] = value
    report = Report.of(make_whole_run(metrics=rows))
    json.dumps(report.to_json(), allow_nan=False)


def test_steps_are_counted_once_however_many_records_there_are(make_whole_run: MakeRun) -> None:
    """100,000 steps were gone through again for every record."""

    class Counting(tuple):  # type: ignore[type-arg]
        passes = 0

        def __iter__(self) -> Any:
            Counting.passes += 1
            return super().__iter__()

    read = read_run(make_whole_run())
    run = replace(read, steps=Counting(read.steps))
    assert [run.now for _ in range(50)] == [run.last_step] * 50
    assert [run.epochs_done for _ in range(50)] == [run.epochs_done] * 50
    assert Counting.passes == 2
