"""Foreign text in what the commands print: shown as it is, and nothing that steers a terminal."""

import contextlib
import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.plain_text import plain
from probes.findings.view import render
from safe import cli as safe_train
from safe.console import PlainConsole
from safe_probe import cli as safe_probe
from tests.hostile import HOSTILE
from tests.reports.conftest import write_whole_run
from tests.reports.spoiled import file_name, mark, marks, shown_as, spoiled

NAMELESS = {"report --quiet", "checklist"}
"""Views that do not say which run they are of."""
Say = Callable[..., str]


def steering(text: str) -> set[str]:
    """What of a text would steer a terminal."""
    kinds = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return {char for char in text if unicodedata.category(char) in kinds and char != "\n"}


def squeezed(text: str) -> str:
    """Without what a table puts between words."""
    return "".join(text.replace("│", "").replace("┃", "").split())


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """say(main, *words) -> all that the command prints, on lines that are long enough."""
    monkeypatch.setenv("COLUMNS", "20000")

    def run(main: Callable[..., int], *words: object) -> str:
        with contextlib.suppress(SystemExit):
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return out + err

    return run


def views(run: Path, other: Path, say: Say) -> dict[str, str]:
    """What each command that reads a run prints about it."""
    commands: dict[str, tuple[Callable[..., int], list[Any]]] = {
        "report": (safe_probe.main, ["report", run]),
        "report --quiet": (safe_probe.main, ["report", run, "--quiet"]),
        "report --markdown": (safe_probe.main, ["report", run, "--markdown"]),
        "watch": (safe_probe.main, ["watch", run, "--once"]),
        "compare": (safe_probe.main, ["compare", other, run]),
        "checklist": (safe_probe.main, ["checklist", run]),
        "rollback": (safe_train.main, ["rollback", run]),
        "no checkpoint": (safe_train.main, ["evaluate", run / "checkpoints"]),
        "not a run": (safe_probe.main, ["report", run.parent / f"{run.name}no"]),
        "unknown config": (safe_train.main, ["show", "--", run.name]),
        "bad value": (safe_train.main, ["show", "demo", "--set", f"data.audio={run.name}"]),
        "no data": (safe_train.main, ["data", "check", run / "nothing"]),
    }
    return {name: say(main, *words) for name, (main, words) in commands.items()}


@pytest.mark.sizes(10, 1)
def test_every_view_of_a_run(size: int, say: Say, figure: Any, tmp_path: Path) -> None:
    other = write_whole_run(tmp_path / "other")
    tame = {name: marks(text) for name, text in views(
        spoiled(tmp_path / "tame", "tame").run.path, other, say).items()}  # fmt: skip
    assert {name for name, places in tame.items() if "name" not in places} <= NAMELESS
    wrong: list[str] = []
    for start in range(0, len(HOSTILE), size):
        bad = " ".join(HOSTILE[start : start + size])
        report = spoiled(tmp_path / str(start), bad)
        shown = views(report.run.path, other, say)
        console = PlainConsole(file=io.StringIO(), width=20_000, force_terminal=True,
                               color_system=None)  # fmt: skip
        console.print(render(report.findings, {bad: bad}), bad, soft_wrap=True)
        assert isinstance(console.file, io.StringIO)
        for name, text in (shown | {"check": console.file.getvalue()}).items():
            wrong += [f"{name}: prints {char!r} of {bad!r}" for char in steering(text)]
        for name, text in shown.items():
            squashed = squeezed(text)
            wrong += [
                f"{name}: {bad!r} is not shown as it is in place {place}: {squashed[-300:]}"
                for place in tame[name]
                if name != "report --markdown"  # has escapes of its own
                and not any(squeezed(good) in squashed for good in shown_as(bad, place))
            ]
    figure(
        f"{len(HOSTILE)} hostile texts, {size} at a time, in {sum(map(len, tame.values()))} places "
        f"of what {len(tame) + 1} commands print: {len(wrong)} control characters or lost texts"
    )
    assert wrong == []


def test_data_check(say: Say, figure: Any, tmp_path: Path) -> None:
    """Clip ids, captions and folders; an id with a separator or a control character is refused."""
    refused = 0
    for number, bad in enumerate(HOSTILE):
        name = file_name(bad) + mark(number)
        root = tmp_path / name
        root.mkdir()
        with (root / "train.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("audiocap_id", "youtube_id", "start_time", "caption"))
            table.writerows((n, name, 0, name) for n in range(2))  # the same caption twice
        text = say(safe_train.main, "data", "check", root)
        as_json = say(safe_train.main, "data", "check", root, "--json", "-")
        assert steering(text) == steering(as_json) == set(), bad
        if text.startswith("DataError: "):
            refused += 1
            assert plain(repr(name)) in text
            continue
        assert squeezed(text).count(squeezed(plain(name))) > 2, (bad, text)
        assert json.loads(as_json)["problems"][0]["clip"].startswith(name.strip())
    figure(
        f"data check of {len(HOSTILE)} hostile clip ids, captions and folders: {refused} refused "
        "by name, the others shown as they are, no control character printed"
    )
    assert 0 < refused < len(HOSTILE) / 2
