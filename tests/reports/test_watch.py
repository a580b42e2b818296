"""A growing run as a page, and the files left alone."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reports.errors import ReportError
from reports.watch import Tail, Watched
from reports.watch_view import frame


@pytest.fixture
def young(make_run: Any, run_rows: Any) -> Path:
    """A run that has done 12 of 30 steps, and this process is training it."""
    rows = [*run_rows["steps"]()[:12], *run_rows["evaluations"]({1.0: 9.0})]
    folder: Path = make_run(
        "young", metrics=rows, records=[r for r in run_rows["records"](step=10) if r.step < 10]
    )
    own(folder, os.getpid())
    (folder / "log.txt").write_text("2026-01-01T00:00:00Z epoch 1: CIDEr 9.0 [5.0, 13.0]\n")
    return folder


def own(folder: Path, pid: int, host: str | None = None) -> None:
    owner = {"pid": pid, "host": host or socket.gethostname()}
    (folder / "run.lock").write_text(json.dumps(owner))


def append(folder: Path, *rows: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def shown(watched: Watched, width: int = 80, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(frame(watched, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_page_of_a_young_run(young: Path) -> None:
    text = shown(Watched(young))
    for part in (
        f"young  running (process {os.getpid()})", "step 12 of 30, epoch 1.2",
        "5.87 -> 4.4 nats/token", "projector 1.2, adapter 0.37", "by layer 2: 0.312",
        "by layer 2: 0.2, 4: 0.2", "9.0 [5.0, 13.0] at epoch 1", "epoch 1: CIDEr 9.0",
        "no finding so far",
    ):  # fmt: skip
        assert part in text, text
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text


def test_what_is_appended_shows(young: Path, run_rows: Any) -> None:
    watched = Watched(young)
    append(young, *run_rows["steps"]()[12:20])
    with (young / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # still being written
    watched.poll()
    assert watched.run.last_step == 20 and "step 20 of 30" in shown(watched)
    with (young / "metrics.jsonl").open("a") as file:
        file.write('ep": 21, "epoch": 2.1, "loss": NaN, "skipped": true}\n')
    watched.poll()
    text = shown(watched)
    assert watched.run.last_step == 21 and "1 not finite" in text and "nan" in text


def test_findings_appear_with_the_records(young: Path, run_rows: Any) -> None:
    watched = Watched(young)
    bad = [r for r in run_rows["records"](gate=0.0, contribution=0.0, step=12) if r.step == 12]
    with (young / "probes.jsonl").open("a") as file:
        file.writelines(json.dumps(r.to_json()) + "\n" for r in bad)
    watched.poll()
    assert "SP211 error  gate @ layers 2, 4, 6, 8" in shown(watched)
    assert "more findings" not in shown(watched)
    assert len(shown(watched, height=11).splitlines()) <= 11


def test_a_file_that_was_cut_back_is_read_anew(young: Path, run_rows: Any) -> None:
    watched = Watched(young)
    rows = run_rows["steps"]()[:5]
    (young / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    watched.poll()
    assert watched.run.last_step == 5 and len(watched.run.steps) == 5


def test_a_file_that_was_replaced_is_read_anew(young: Path, run_rows: Any) -> None:
    watched = Watched(young)
    rows = [{**row, "loss": 9.0} for row in run_rows["steps"]()]  # longer, and all of it new
    other = young / "new.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other.replace(young / "metrics.jsonl")
    watched.poll()
    assert [row["loss"] for row in watched.run.steps] == [9.0] * 30


def test_ends_are_told_apart(young: Path, run_rows: Any) -> None:
    watched = Watched(young)
    assert not watched.life().over
    pid = dead_pid()
    own(young, pid)
    assert watched.life().word == "died"
    assert f"process {pid} is gone; stopped at step 12" in shown(watched)
    (young / "run.lock").write_text("")
    assert watched.life().word == "stopped" and watched.life().over
    append(young, *run_rows["steps"]()[12:])
    watched.poll()
    assert watched.life().word == "finished"
    own(young, 1, host="elsewhere")
    assert watched.life().detail == "process 1 on elsewhere" and not watched.life().over
    for file in young.iterdir():
        os.utime(file, (0, 0))
    assert "may have died" in watched.life().detail
    (young / "run.lock").write_text("{torn")
    assert watched.life().word == "running"


def test_the_age_of_measurements_is_told(young: Path, run_rows: Any) -> None:
    assert "by all at step 0" in shown(Watched(young))
    newer = [r for r in run_rows["records"](step=10) if r.step == 10 and r.probe == "gates"]
    with (young / "probes.jsonl").open("a") as file:
        file.writelines(json.dumps(r.to_json()) + "\n" for r in newer)
    text = " ".join(shown(Watched(young)).split())
    assert "gates at step 10; magnitude, gradflow at step 0" in text


def test_final_scores_appear(young: Path, run_rows: Any) -> None:
    watched = Watched(young)
    (young / "evaluation.json").write_text(json.dumps(run_rows["scores"](40.0, 41.0)))
    watched.poll()
    text = shown(watched)
    assert "final 40.0, with another clip's audio 41.0" in text and "SP701 error" in text


def test_a_run_without_a_step_yet(make_run: Any) -> None:
    watched = Watched(make_run("new"))
    assert watched.total_steps() is None and "no step yet" in shown(watched)
    assert watched.life().word == "stopped"


def test_nothing_is_touched(young: Path) -> None:
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in young.rglob("*") if f.is_file()}
    watched = Watched(young)
    watched.poll()
    shown(watched)
    after = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in young.rglob("*") if f.is_file()}
    assert after == before


def test_foreign_text_is_harmless(young: Path) -> None:
    (young / "log.txt").write_text("2026 clip [red]\x1b[2J\u202e bad\n")
    text = shown(Watched(young))
    assert r"clip [red]\x1b[2J\u202e bad" in text and "\x1b" not in text


def test_damaged_rows_are_harmless(young: Path) -> None:
    watched = Watched(young)
    append(
        young, {"kind": "step"}, {"kind": "step", "step": 13, "epoch": 1.3, "loss": "x\x1b"},
        {"kind": "step", "step": "14", "epoch": None},
        {"kind": "step", "step": 14, "epoch": 1.4, "gate/\x1b": [], "outer_gate": "no"},
        {"kind": "evaluation", "step": 14, "epoch": 1.4},
    )  # fmt: skip
    watched.poll()
    text = shown(watched)
    assert "step 14 of 30" in text and "nan [nan, nan] at epoch 1.4" in text and "\x1b" not in text


def test_tail_reads_only_what_is_new(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    tail = Tail(file)
    assert not tail.poll() and tail.rows == []
    file.write_text('{"a": 1}\n[2]\nnot json\n{"b"')
    assert tail.poll() and tail.rows == [{"a": 1}]
    assert not tail.poll()
    with file.open("a") as handle:
        handle.write(": 3}\n")
    assert tail.poll() and tail.rows == [{"a": 1}, {"b": 3}]


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="is no run"):
        Watched(tmp_path)
