"""Whole pages of fixed runs, and what holds for every page.

The pages in ``golden`` are made anew by ``SAFE_PROBE_GOLDEN=write pytest tests/reports``; read the
difference before committing it.
"""

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reports.checklist import checklist
from reports.console import print_report, quiet_line
from reports.criteria import CRITERIA
from reports.report import Report
from reports.rules_view import checklist_view, criteria_view

GOLDEN = Path(__file__).parent / "golden"
CASES = ("healthy", "partial", "closed-gate", "control", "crashed", "not-evaluated", "nan-score")


@pytest.fixture
def case(make_whole_run: Any, run_rows: Any) -> Callable[[str], Path]:
    """case("healthy") writes the folder of that run."""

    def crashed() -> Path:
        folder: Path = make_whole_run(
            "crashed", metrics=run_rows["steps"]()[:13], records=run_rows["records"](step=10),
            evaluation=None, captions=None, references=None, resources=None,
        )  # fmt: skip
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "step", "step": 14, "epo')
        return folder

    def nan_score() -> Path:
        scores = run_rows["scores"]()
        scores["scores"] |= {"cider": math.nan, "cider_interval": [math.nan, math.nan]}
        return make_whole_run("nan-score", evaluation=scores)

    makers: dict[str, Callable[[], Path]] = {
        "healthy": lambda: make_whole_run("healthy"),
        "partial": lambda: make_whole_run("partial", score=27, shuffled=10),
        "closed-gate": lambda: make_whole_run(
            "closed-gate", score=12, shuffled=12, gate=0.0, contribution=0.0, swapped=0.0
        ),
        "control": lambda: make_whole_run("control", score=40, shuffled=41),
        "crashed": crashed,
        "not-evaluated": lambda: make_whole_run("not-evaluated", evaluation=None, captions=None),
        "nan-score": nan_score,
    }
    return lambda name: makers[name]()


def printed(report: Report, width: int = 80, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    print_report(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def check_golden(name: str, text: str) -> None:
    file = GOLDEN / name
    text = "".join(line.rstrip() + "\n" for line in text.splitlines())
    if os.environ.get("SAFE_PROBE_GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"SAFE_PROBE_GOLDEN=write renews {file.name}"


@pytest.mark.parametrize("name", CASES)
def test_page_and_json_of_a_fixed_run(name: str, case: Callable[[str], Path]) -> None:
    folder = case(name)
    report = Report.of(folder)
    check_golden(f"{name}.txt", printed(report).replace(str(folder), "RUN"))
    value = report.to_json()
    if name != "healthy":  # these are the same for all
        del value["claims"], value["run"]["config"]
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    check_golden(f"{name}.json", text.replace(str(folder), "RUN"))


def test_decisions_of_the_fixed_runs(case: Callable[[str], Path]) -> None:
    decisions = {name: Report.of(case(name)).verdict.decision.name for name in CASES}
    assert decisions == {
        "healthy": "PROCEED", "partial": "PARTIAL", "closed-gate": "BLOCKED",
        "control": "BLOCKED", "crashed": "UNFINISHED", "not-evaluated": "BLOCKED",
        "nan-score": "BLOCKED",
    }  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 132, 200])
def test_no_width_cuts_anything_off(width: int, case: Callable[[str], Path]) -> None:
    report = Report.of(case("closed-gate"))
    text = printed(report, width)
    assert "…" not in text and "\x1b" not in text
    pages = [line for line in text.splitlines() if not line.lstrip().startswith("safe-")]
    assert max(map(len, pages)) <= width  # commands are whole, and the terminal's to break
    if width == 200:
        for outcome in report.outcomes:
            assert outcome.criterion.title in text and outcome.shown in text
    assert text.splitlines()[-1] == report.verdict.next_step.command
    squeezed = "".join(text.split())
    for finding in report.findings:
        assert finding.code in squeezed
    narrow_words = {w for o in report.outcomes for w in o.criterion.title.split()}
    assert all(word in squeezed for word in narrow_words)


def test_foreign_text_is_neither_markup_nor_escape_codes(
    make_whole_run: Any, run_rows: Any
) -> None:
    evil = "\x1b[2J[bold red]x[/] \u202eevil\x07 ]0;title"
    config = {"data.test_split": evil}
    folder = make_whole_run("run", config=config, problems=[{"clip": evil}])
    moved = folder.rename(folder.with_name("[red]a\x1b[31m b"))
    for options in ({}, {"force_terminal": True, "color_system": None}):
        text = printed(Report.of(moved), **options)
        assert r"[red]a\x1b[31m b" in text
        assert not {"\x1b[31m", "\x07", "\u202e"} & set(text) and "\x1b[31m" not in text
    assert "\x1b" not in quiet_line(Report.of(moved))


def test_a_doubtful_link_is_not_called_broken(make_whole_run: Any) -> None:
    text = printed(Report.of(make_whole_run("quiet", gate=0.001, contribution=0.001)))
    assert "! doubtful" in text and "<- look here first" in text
    assert "earliest broken link" not in text


def test_quiet_is_one_line(case: Callable[[str], Path]) -> None:
    for name in CASES:
        report = Report.of(case(name))
        line = quiet_line(report)
        assert "\n" not in line and line.startswith(report.verdict.decision.name)
        assert line.endswith(report.verdict.next_step.command)


def test_rules_and_checklist_without_a_run() -> None:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(criteria_view(), checklist_view(checklist()))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(criterion.name in text for criterion in CRITERIA)
    assert "[?]" in text and "before training" in text and "PROCEED     every deciding" in text


def test_terminal_and_json_load_nothing_heavy(case: Callable[[str], Path]) -> None:
    folder = case("closed-gate")
    code = (
        "import sys\nfrom safe_probe.cli import main\n"
        f"run = {str(folder)!r}\n"
        "assert main(['report', run]) == main(['report', run, '--json']) == 1\n"
        "assert main(['watch', run, '--once']) == main(['criteria']) == 0\n"
        "assert main(['checklist', run]) == main(['compare', run, run]) == 0\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'seaborn', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
