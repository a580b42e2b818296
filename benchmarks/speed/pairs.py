"""Ratios inside one run: each contender takes turns with the base, in CPU time of the process.

Absolute times on a shared machine mean little, and neither do two runs. So the base is timed again
next to every single measurement of a contender, in alternating order, and the base against itself
is a contender too: its spread is the noise that a ratio must leave to mean anything.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Work = Callable[[], Any]
PAIRS = 9
_ENOUGH = 0.05
"""CPU seconds that one measurement takes at least, by repetition."""


@dataclass(frozen=True)
class Ratio:
    """How much a contender costs, as a multiple of its base."""

    table: str
    """What the base does."""
    name: str
    """What the contender does; ``noise`` is the base itself."""
    ratio: float
    """Median over the pairs."""
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    milliseconds: float
    """Median CPU time of the contender, once."""
    pairs: int
    """How many."""
    goal: float | None = None
    """The ratio that was asked for; None where none was."""
    at_least: bool = False
    """Whether the ratio should be at least the goal (of what should be slower), not at most."""

    @property
    def reached(self) -> bool | None:
        """Whether the median is within the goal."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "reached": self.reached}

    def __str__(self) -> str:
        bound = "at least " if self.at_least else ""
        goal = "" if self.goal is None else f"  goal {bound}{self.goal:g}x"
        verdict = {None: "", True: " reached", False: " NOT REACHED"}[self.reached]
        return (
            f"  {self.name:<52} {self.ratio:7.3f}x  ({self.low:.3f} to {self.high:.3f})"
            f"  {self.milliseconds:9.3f} ms{goal}{verdict}"
        )


def take_turns(
    table: str,
    base: Work,
    contenders: Mapping[str, Work],
    goals: Mapping[str, float] | None = None,
    pairs: int = PAIRS,
) -> list[Ratio]:
    """Time ``base`` against every contender.

    Args:
        table: what the base does.
        base: the work that is 1x.
        contenders: work by name.
        goals: largest ratio asked for, by name.
        pairs: how many, at least 7.
    """
    everyone = {"noise": base, **contenders}
    gc.collect()
    gc.freeze()  # else whoever comes when it is due pays for everything that was loaded
    for work in everyone.values():
        work()
    repeats = {name: _repeats(work) for name, work in everyone.items()}
    base_repeats = repeats["noise"]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in everyone}
    for turn in range(pairs):
        for name, work in everyone.items():
            if turn % 2:
                own, other = _seconds(work, repeats[name]), _seconds(base, base_repeats)
            else:
                other, own = _seconds(base, base_repeats), _seconds(work, repeats[name])
            found[name].append((own / other, own))
    return [_ratio(table, name, x, (goals or {}).get(name)) for name, x in found.items()]


def _ratio(table: str, name: str, found: list[tuple[float, float]], goal: float | None) -> Ratio:
    ratios = [ratio for ratio, _ in found]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    milliseconds = 1000 * statistics.median(seconds for _, seconds in found)
    return Ratio(table, name, middle, low, high, milliseconds, len(found), goal)


def _repeats(work: Work) -> int:
    once = _seconds(work, 1)
    return max(1, round(_ENOUGH / max(once, 1e-6)))


def _seconds(work: Work, times: int) -> float:
    """CPU seconds of the whole process for one call."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times
