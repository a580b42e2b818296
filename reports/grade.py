"""Grades: PASS, PARTIAL, FAIL, or UNKNOWN for what was not measured; and what earns them."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Grade(Enum):
    """How a criterion came out."""

    PASS = "PASS"
    PARTIAL = "PARTIAL"
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"
    """Not measured, not a number, or not comparable: never a pass."""


class Condition(Protocol):
    """What a measured value must satisfy; only ever asked about finite values."""

    def grade(self, value: float) -> Grade:
        """The grade of a finite value."""
        ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class AtLeast:
    """PASS from ``passing`` on, PARTIAL from ``partial`` on (None: no middle), else FAIL."""

    passing: float
    partial: float | None = None
    strict: bool = False
    """Whether PASS needs more than ``passing`` itself."""
    unit: str = ""

    def grade(self, value: float) -> Grade:
        """The grade of a finite value."""
        if value > self.passing or (value == self.passing and not self.strict):
            return Grade.PASS
        return Grade.FAIL if self.partial is None or value < self.partial else Grade.PARTIAL

    def __str__(self) -> str:
        passing = f"{'>' if self.strict else '>='} {self.passing:g}{self.unit}"
        if self.partial is None:
            return passing
        return f"{passing} (partial from {self.partial:g}{self.unit} on)"


@dataclass(frozen=True)
class Within:
    """PASS in ``low`` to ``high``; PARTIAL within ``slack`` times either end; else FAIL."""

    low: float
    high: float
    slack: float = 1.0
    unit: str = ""

    def grade(self, value: float) -> Grade:
        """The grade of a finite value."""
        if self.low <= value <= self.high:
            return Grade.PASS
        wide = self.low / self.slack <= value <= self.high * self.slack
        return Grade.PARTIAL if wide else Grade.FAIL

    def __str__(self) -> str:
        if self.low == self.high:
            return f"exactly {self.low:g}{self.unit}"
        text = f"{self.low:g} to {self.high:g}{self.unit}"
        if self.slack == 1:
            return text
        return f"{text} (partial within a factor of {self.slack:g})"


def grade(value: float | None, condition: Condition) -> Grade:
    """The grade of any value: None, NaN and infinities are UNKNOWN."""
    if value is None or not math.isfinite(value):
        return Grade.UNKNOWN
    return condition.grade(value)
