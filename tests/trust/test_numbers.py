"""A number that is not finite never reaches a weight, and never passes a criterion."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import MetricError
from reports.criteria import CRITERIA
from reports.grade import Grade, grade
from reports.report import Report
from safe.evaluation import metrics
from safe.evaluation.bootstrap import Difference
from safe.evaluation.verdict import decide
from tests.reports.conftest import write_whole_run

BAD = (math.nan, math.inf, -math.inf)


def test_every_site_of_a_step(trial: Any, tiny_run: Any, figure: Any) -> None:
    found = trial("numbers:sites", config=tiny_run.config.to_dict())
    figure(
        f"NaN and infinity at {found['cases']} places of a step: {found['skipped']} steps skipped, "
        f"{len(found['moved'])} updates that they reached"
    )
    assert found["moved"] == []
    assert found["cases"] == 33 and found["skipped"] >= 22


def test_training_stops_and_names_the_clips(trial: Any, tiny_run: Any, figure: Any) -> None:
    found = trial("numbers:stops", config=tiny_run.config.to_dict(), steps=3)
    figure(f"NaN that stays, at {found['places']} places: {len(found['wrong'])} trainings that do "
           "not stop at the third step in a row, by its clips")  # fmt: skip
    assert found["wrong"] == [] and found["places"] == 11


@pytest.mark.parametrize("value", BAD)
def test_no_criterion_passes_by_it(value: float) -> None:
    for criterion in CRITERIA:
        assert grade(value, criterion.condition) is Grade.UNKNOWN, criterion.name


@pytest.mark.parametrize("value", BAD)
def test_no_score_comes_of_it(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def compute_score(self, references: Any, _: Any) -> tuple[float, list[float]]:
            return value, [1.0] * (len(references) - 1) + [value]

    monkeypatch.setattr(metrics, "Cider", Broken)
    with pytest.raises(MetricError, match=f"is {value}; every clip needs a finite score"):
        metrics.score({"a": "x", "b": "y"}, {"a": ["x"], "b": ["y"]}, metrics=("cider",))
    with pytest.raises(MetricError, match="no verdict"):
        decide(value, Difference(20.0, 10.0, 30.0))
    assert not Difference(value, math.nan, value).significant
    assert not np.isfinite(value)


def numbers(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the numbers of a JSON document stand; of many alike, the first and the last."""
    if isinstance(document, dict | list):
        items = list(document.items() if isinstance(document, dict) else enumerate(document))
        for key, value in items if len(items) < 30 else (items[0], items[-1]):
            yield from numbers(value, (*path, key))
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield path


def spoil(file: Path, path: tuple[Any, ...], value: float) -> None:
    """Put ``value`` at a place of a JSON file, or of a JSON line."""
    if file.suffix == ".json":
        place = document = json.loads(file.read_text())
    else:
        place = document = [json.loads(line) for line in file.read_text().splitlines()]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    if file.suffix == ".json":
        file.write_text(json.dumps(document))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in document))


def places(run: Path) -> Iterator[tuple[Path, tuple[Any, ...]]]:
    """Every number that a report reads."""
    for name in ("evaluation.json", "resources.json"):
        for path in numbers(json.loads((run / name).read_text())):
            yield run / name, path
    for name in ("metrics.jsonl", "probes.jsonl"):
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
        chosen = range(len(rows)) if name == "probes.jsonl" else (0, len(rows) - 2, len(rows) - 1)
        for number in chosen:
            for path in numbers(rows[number]):
                yield run / name, (number, *path)


@pytest.mark.sizes(25, 1)
def test_no_field_of_a_run_passes_by_it(size: int, figure: Any, tmp_path: Path) -> None:
    """NaN or infinity in place of each number (each ``size``-th) of a bad run and of a good one."""
    runs = (write_whole_run(tmp_path / "good"),
            write_whole_run(tmp_path / "bad", score=5.0, shuffled=9.0, gate=0.0, swapped=0.0,
                            contribution=50.0))  # fmt: skip
    count, wrong = 0, []
    for run in runs:
        before = Report.of(run)
        grades = [outcome.grade for outcome in before.outcomes]
        for file, path in list(places(run))[::size]:
            whole = file.read_bytes()
            for value in BAD:
                spoil(file, path, value)
                after = Report.of(run)
                better = after.verdict.decision > before.verdict.decision
                passed = [
                    outcome.criterion.name
                    for old, outcome in zip(grades, after.outcomes, strict=True)
                    if outcome.grade is Grade.PASS and old is not Grade.PASS
                ]
                if better or passed:
                    wrong.append(f"{run.name} {file.name} {path} {value}: {passed}")
                count += 1
            file.write_bytes(whole)
    figure(f"NaN and infinity in place of a number of a run's files, {count} times: {len(wrong)} "
           "criteria that passed by it")  # fmt: skip
    assert wrong == []
    assert count > 100
