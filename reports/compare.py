"""Two or more runs side by side: settings, scores, criteria, findings and curves, as pure data.

The first run is what the others are held against.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from configs.overrides import flatten
from probes.findings.finding import Finding, Severity
from probes.record import json_number
from reports.errors import ReportError
from reports.paired import Difference, paired_difference
from reports.printed import as_float
from reports.report import Report
from reports.run import Run

SCHEMA = "safe-probe.comparison"
SCHEMA_VERSION = 1
COMMON_SHARE = 0.9
"""Share of the larger test set that both runs must have been scored on to be compared."""
Curve = tuple[tuple[float, float], ...]
"""Pairs of epoch and value."""


@dataclass(frozen=True)
class Side:
    """What one run brings into a comparison."""

    name: str
    """Its folder's name; with the folder around it where two runs are called the same."""
    decision: str
    """``PROCEED``, ``PARTIAL``, ``UNFINISHED`` or ``BLOCKED``."""
    cider: float | None
    """Final CIDEr x 100; None when it was not evaluated."""
    interval: tuple[float, float] | None
    """Its 95% bootstrap interval."""
    shuffled: float | None
    """CIDEr x 100 with another clip's audio."""
    clips: int | None
    """How many clips the score is the mean of."""
    split: str | None
    """Name of the split it was evaluated on."""
    difference: Difference | None
    """Against the first run; None for that one, and where they cannot be compared."""
    not_comparable: str
    """Why there is no difference; empty when there is one, and for the first run."""
    gained: tuple[Finding, ...]
    """Errors and warnings that the first run does not have."""
    lost: tuple[Finding, ...]
    """Errors and warnings that only the first run has."""
    probes: tuple[str, ...]
    """Probes that looked at it: what was not looked at has no findings."""
    loss: Curve
    """Training loss in nats/token at every step."""
    cider_curve: Curve
    """CIDEr x 100 at every evaluation during training."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; values of a row are in the order of ``sides``."""

    sides: tuple[Side, ...]
    settings: Mapping[str, tuple[Any, ...]]
    """Dotted key to its value in each run; only keys whose values differ."""
    criteria: Mapping[str, tuple[tuple[str, str], ...]]
    """Title of a criterion to grade and value in each run."""

    @classmethod
    def of(cls, reports: Sequence[Report]) -> "Comparison":
        """Compare judged runs.

        Raises:
            ReportError: fewer than two of them.
        """
        if len(reports) < 2:
            raise ReportError(f"a comparison needs at least two runs, got {len(reports)}")
        names = _names([report.run for report in reports])
        return cls(
            sides=tuple(_side(n, r, reports[0]) for n, r in zip(names, reports, strict=True)),
            settings=_differing([dict(flatten(r.run.config.to_dict())) for r in reports]),
            criteria={
                row[0].criterion.title: tuple((o.grade.value, o.shown) for o in row)
                for row in zip(*(report.outcomes for report in reports), strict=True)
            },
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON-safe values."""
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "runs": [_side_json(side) for side in self.sides],
            "settings": {key: list(values) for key, values in self.settings.items()},
            "criteria": {
                title: [{"grade": grade, "shown": shown} for grade, shown in row]
                for title, row in self.criteria.items()
            },
        }


def _names(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.path.parent.name}/{run.name}" for run in runs]
    steps = ["" if run.checkpoint is None else f"@{run.checkpoint}" for run in runs]
    return [name + step for name, step in zip(names, steps, strict=True)]


def _side(name: str, report: Report, first: Report) -> Side:
    run, score = report.run, partial(report.run.facts.value, "scores", "score")
    reason = "" if report is first else not_comparable(first.run, run)
    compared = report is not first and not reason
    low, high, clips = score("cider_low"), score("cider_high"), score("clips")
    return Side(
        name=name,
        decision=report.verdict.decision.name,
        cider=score("cider"),
        interval=None if low is None or high is None else (low, high),
        shuffled=score("shuffled"),
        clips=None if clips is None else int(clips),
        split=run.evaluation.get("split"),
        difference=paired_difference(first.run.per_clip_cider, run.per_clip_cider)
        if compared
        else None,
        not_comparable=reason,
        gained=_only(report.findings, first.findings),
        lost=_only(first.findings, report.findings),
        probes=tuple(dict.fromkeys(record.probe for record in run.log)),
        loss=_curve(run.steps, "loss"),
        cider_curve=_curve(run.evaluations, "cider"),
    )


def not_comparable(first: Run, second: Run) -> str:
    """Why a difference of the final scores of two runs would mean nothing; else empty."""
    for run in (first, second):
        if not run.per_clip_cider:
            at = "" if run.checkpoint is None else f"@{run.checkpoint}"
            return f"{run.name}{at} has no final scores"
    for name, a, b in (
        ("splits", first.evaluation.get("split"), second.evaluation.get("split")),
        ("tokenizers", first.scores.get("tokenizer"), second.scores.get("tokenizer")),
    ):
        if a != b:
            return f"scored with different {name}: {a} and {b}"
    ours, theirs = first.per_clip_cider, second.per_clip_cider
    common = len(ours.keys() & theirs.keys())
    if common < max(2, COMMON_SHARE * max(len(ours), len(theirs))):
        return (
            f"scored on different clips ({len(ours)} and {len(theirs)}, {common} of them in "
            "both), and CIDEr weighs words by all captions of its test set"
        )
    if not all(map(math.isfinite, (*ours.values(), *theirs.values()))):
        return "a clip's score is not a number"
    return ""


def _differing(trees: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    keys = dict.fromkeys(key for tree in trees for key in tree if key != "description")
    rows = {key: tuple(tree.get(key) for tree in trees) for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _only(ours: Sequence[Finding], theirs: Sequence[Finding]) -> tuple[Finding, ...]:
    # an error that has become a warning is one gone and one new
    known = {(f.code, f.component, f.layer, f.severity) for f in theirs}
    real = (f for f in ours if f.severity > Severity.NOTE)
    return tuple(f for f in real if (f.code, f.component, f.layer, f.severity) not in known)


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> Curve:
    return tuple((float(r["epoch"]), as_float(r[name])) for r in rows if r.get(name) is not None)


def _side_json(side: Side) -> dict[str, Any]:
    curves = {"loss": side.loss, "cider_curve": side.cider_curve}
    plain = {k: v for k, v in asdict(side).items() if k not in ("difference", "gained", "lost")}
    return plain | {
        "cider": _number(side.cider),
        "interval": None if side.interval is None else [_number(x) for x in side.interval],
        "shuffled": _number(side.shuffled),
        "difference": None if side.difference is None else side.difference.to_json(),
        "gained": [f.to_json() for f in side.gained],
        "lost": [f.to_json() for f in side.lost],
        **{name: [[x, _number(y)] for x, y in curve] for name, curve in curves.items()},
    }


def _number(value: float | None) -> float | str | None:
    return None if value is None else json_number(value)
