"""What stands on the page that holds runs side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.findings.view import grouped, measured, place
from reports.compare import Comparison, Side
from reports.grade import Grade
from reports.page import DECISIONS, GRADES, SEVERITIES
from reports.paired import Difference
from reports.plots.curves import series
from reports.plots.plot import Plot
from reports.plots.thin import Floats
from reports.printed import number
from reports.verdict import Decision

if TYPE_CHECKING:
    from reports.report import Report

Rows = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class ComparisonPage:
    """Runs by letter; the first is what the others are held against."""

    letters: tuple[str, ...]
    sides: Rows
    """Name, decision, score and difference of every run."""
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    """Dotted key to its value in every run, where they differ."""
    criteria: tuple[tuple[str, tuple[dict[str, str], ...]], ...]
    """Title to kind of mark, grade and value in every run."""
    changes: Rows
    """Findings gained and lost against the first run."""
    unprobed: tuple[str, ...]
    """Which runs some probes did not look at: they cannot have its findings."""
    plots: tuple[Plot, ...]

    @classmethod
    def of(cls, reports: "Sequence[Report]") -> "ComparisonPage":
        """Lay out a comparison.

        Raises:
            ReportError: fewer than two runs.
        """
        comparison = Comparison.of(reports)
        sides = comparison.sides
        letters = tuple(islice(_letters(), len(sides)))
        named = dict(zip(letters, sides, strict=True))
        return cls(
            letters=letters,
            sides=tuple(_side(letter, side) for letter, side in named.items()),
            settings=tuple(
                (key, tuple(map(_value, values))) for key, values in comparison.settings.items()
            ),
            criteria=tuple(
                (title, tuple(_graded(grade, shown) for grade, shown in row))
                for title, row in comparison.criteria.items()
            ),
            changes=tuple(_changes(named)),
            unprobed=tuple(_unprobed(named)),
            plots=tuple(filter(None, (
                _curves("loss", "Training loss", "loss (nats/token)", named, lambda s: s.loss),
                _curves("cider", "CIDEr by epoch", "CIDEr", named, lambda s: s.cider_curve),
            ))),
        )  # fmt: skip


def _letters() -> Iterator[str]:
    yield from ascii_uppercase
    yield from (f"run {i}" for i in count(len(ascii_uppercase) + 1))


def _side(letter: str, side: Side) -> dict[str, Any]:
    gap = side.difference
    interval = "" if side.interval is None else " [{:.1f}, {:.1f}]".format(*side.interval)
    return {
        "letter": letter, "name": side.name, "decision": side.decision,
        "kind": DECISIONS[Decision[side.decision]],
        "cider": "not evaluated" if side.cider is None else f"{side.cider:.1f}{interval}",
        "shuffled": "-" if side.shuffled is None else f"{side.shuffled:.1f}",
        "clips": f"{number(side.clips)} of {side.split}" if side.split else number(side.clips),
        "difference": side.not_comparable if gap is None else (
            f"{gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}] on {gap.clips} clips: {_word(gap)}"
        ),
    }  # fmt: skip


def _word(gap: Difference) -> str:
    if gap.low > 0:
        return "better"
    return "worse" if gap.high < 0 else "no clear difference"


def _graded(grade: str, shown: str) -> dict[str, str]:
    return {"kind": GRADES[Grade(grade)], "grade": grade, "shown": shown}


def _changes(named: Mapping[str, Side]) -> Iterator[dict[str, Any]]:
    for letter, side in named.items():
        for word, findings in (("new in", side.gained), ("gone in", side.lost)):
            for group in grouped(findings):
                first = group[0]
                yield {
                    "change": f"{word} {letter}", "kind": SEVERITIES[first.severity],
                    "code": first.code, "severity": first.severity.word, "title": first.title,
                    "place": place(group), "measured": measured(group),
                }  # fmt: skip


def _unprobed(named: Mapping[str, Side]) -> Iterator[str]:
    everything = {name for side in named.values() for name in side.probes}
    for letter, side in named.items():
        if missing := sorted(everything.difference(side.probes)):
            yield f"{letter} was not looked at by the probes {', '.join(missing)}."


def _curves(
    key: str, title: str, label: str, named: Mapping[str, Side],
    curve: Callable[[Side], Sequence[tuple[float, float]]],
) -> Plot | None:  # fmt: skip
    lines: dict[str, tuple[Floats, Floats]] = {}
    for letter, side in named.items():
        points = np.array(curve(side), dtype=float).reshape(-1, 2)
        if np.isfinite(points[:, 1]).any():
            lines[f"{letter} {side.name}"] = (points[:, 0], points[:, 1])
    if not lines:
        return None
    return series(key, title, ("epoch", label), lines, smoothed=key == "loss")


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
