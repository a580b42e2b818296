"""Ratios inside one run: contender and base take turns, in CPU time or between a GPU's events.

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

import torch

Work = Callable[[], Any]
PAIRS = 9
_ENOUGH = 0.05
"""Seconds that one measurement takes at least, by repetition."""
_WARM_UP = 3
"""Calls before anything is timed: a GPU chooses kernels and fills its allocator in the first."""


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
    """Median time of the contender, once."""
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
    device: torch.device | None = None,
) -> list[Ratio]:
    """Time ``base`` against every contender.

    Args:
        table: what the base does.
        base: the work that is 1x.
        contenders: work by name.
        goals: largest ratio asked for, by name.
        pairs: how many, at least 7.
        device: where the work is done; None is the CPU.
    """
    everyone = {"noise": base, **contenders}
    gc.collect()
    gc.freeze()  # else whoever comes when it is due pays for everything that was loaded
    for work in everyone.values():
        for _ in range(_WARM_UP if _is_gpu(device) else 1):
            work()
    repeats = {name: _repeats(work, device) for name, work in everyone.items()}
    base_repeats = repeats["noise"]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in everyone}
    for turn in range(pairs):
        for name, work in everyone.items():
            if turn % 2:
                own = seconds(work, repeats[name], device)
                other = seconds(base, base_repeats, device)
            else:
                other = seconds(base, base_repeats, device)
                own = seconds(work, repeats[name], device)
            found[name].append((own / other, own))
    return [_ratio(table, name, x, (goals or {}).get(name)) for name, x in found.items()]


def _ratio(table: str, name: str, found: list[tuple[float, float]], goal: float | None) -> Ratio:
    ratios = [ratio for ratio, _ in found]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    milliseconds = 1000 * statistics.median(seconds for _, seconds in found)
    return Ratio(table, name, middle, low, high, milliseconds, len(found), goal)


def _repeats(work: Work, device: torch.device | None) -> int:
    once = seconds(work, 1, device)
    return max(1, round(_ENOUGH / max(once, 1e-6)))


def seconds(work: Work, times: int = 1, device: torch.device | None = None) -> float:
    """Seconds of one call: CPU time of the whole process, or what lies between two events."""
    if _is_gpu(device):
        return _between_events(work, times)
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def _between_events(work: Work, times: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / times  # the events' unit is a millisecond


def _is_gpu(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"
