"""A criterion: what is measured in a run, and separately what is asked of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from probes.findings.finding import Link
from probes.record import json_number
from reports.grade import Condition, Grade, grade
from reports.run import Run


@dataclass(frozen=True)
class Measurement:
    """A measured value and how it came about."""

    value: float | None
    """None when it cannot be compared; ``evidence`` says why."""
    evidence: str
    """In words with numbers: what was found, and where."""
    shown: str = ""
    """The value as it is printed; from ``value`` when empty."""
    comparable: bool = True
    """False when the expectation is of another model or other data."""


@dataclass(frozen=True)
class Criterion:
    """One row of the table of rules."""

    name: str
    """Stable key, e.g. ``final_cider``."""
    title: str
    phase: str
    """``before``, ``during`` or ``after`` training."""
    decides: bool
    """Whether the verdict depends on it; the others explain."""
    condition: Condition
    source: str
    """Where the expectation comes from."""
    why: str
    """What it says about the experiment."""
    to_measure: str
    """The command that measures it when it is unknown; ``RUN`` stands for the run's folder."""
    measure: Callable[[Run], Measurement | None]
    """None when the run holds nothing of it."""
    link: Link | None = None
    """The link of the signal path that is doubtful while it is not passed."""

    def judge(self, run: Run) -> "Outcome":
        """The outcome in ``run``; an exception becomes UNKNOWN with its reason."""
        try:
            found = self.measure(run)
        except Exception as error:  # a criterion must not take the report down with it
            found = Measurement(None, f"could not be measured: {type(error).__name__}: {error}")
        if found is None:
            none = "not measured"
            return Outcome(self, Grade.UNKNOWN, None, none, none, self.to_measure)
        shown = found.shown or ("-" if found.value is None else f"{found.value:.3g}")
        result = grade(found.value, self.condition)
        to_measure = self.to_measure if found.comparable else ""
        return Outcome(self, result, found.value, shown, found.evidence, to_measure)


@dataclass(frozen=True)
class Outcome:
    """What came of a criterion in one run."""

    criterion: Criterion
    grade: Grade
    value: float | None
    """None when it was not measured or cannot be compared."""
    shown: str
    """The value as text."""
    evidence: str
    to_measure: str = ""
    """The command that would measure it; empty when none can in this run."""

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON-safe values."""
        c = self.criterion
        return {
            "name": c.name,
            "title": c.title,
            "phase": c.phase,
            "decides": c.decides,
            "grade": self.grade.value,
            "value": None if self.value is None else json_number(self.value),
            "shown": self.shown,
            "expected": str(c.condition),
            "source": c.source,
            "why": c.why,
            "evidence": self.evidence,
            "to_measure": self.to_measure,
        }
