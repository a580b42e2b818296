"""What commands cost in a fresh process: CPU seconds, user and system, children included."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.pairs import PAIRS, Ratio

_MAIN = "import sys; from safe_probe.cli import main; sys.exit(main(sys.argv[1:]))"
_IMPORTS = "import torch, transformers.models.llava.modeling_llava"
QUICK_SECONDS, CHECK_SECONDS = 0.5, 15.0


@dataclass(frozen=True)
class Seconds:
    """How long a command takes."""

    command: str
    cpu: float
    """Median CPU seconds."""
    low: float
    """Least."""
    high: float
    """Most."""
    wall: float
    """Median wall seconds, which other work on the machine lengthens."""
    goal: float
    """Seconds that were asked for."""
    of: str
    """``cpu`` or ``wall``: which of them the goal is for."""
    without_torch: bool | None
    """Whether neither torch nor transformers was imported; None where they may be."""

    @property
    def reached(self) -> bool:
        """Whether the median is within the goal, and nothing heavy was imported."""
        return getattr(self, self.of) <= self.goal and self.without_torch is not False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "reached": self.reached}

    def __str__(self) -> str:
        heavy = {None: "", True: ", without torch", False: ", IMPORTS TORCH"}[self.without_torch]
        return (
            f"  {self.command:<52} {self.cpu:6.2f} s CPU ({self.low:.2f} to {self.high:.2f})"
            f"  {self.wall:6.2f} s wall{heavy}  goal {self.goal:g} s {self.of}"
            f" {'reached' if self.reached else 'NOT REACHED'}"
        )


def quick_commands(run: Path | None) -> Iterator[Seconds]:
    """The commands that answer without a model; ``run`` is a finished run to report."""
    lines = [["--help"], ["explain", "SP204"], ["list"]]
    if run is not None:
        lines.append(["report", str(run)])
    for line in lines:
        found = [_spent(_MAIN, line) for _ in range(7)]
        shown = " ".join("RUN" if part == str(run) else part for part in line)
        yield _seconds(f"safe-probe {shown}", found, QUICK_SECONDS, "cpu", _is_light(line))


def check_command() -> Seconds:
    """``safe-probe check`` on the embedded default, everything included."""
    line = ["check", "--config", "demo"]
    return timed_command("safe-probe check --config demo", line, CHECK_SECONDS, "wall")


def timed_command(what: str, line: Sequence[str], goal: float, of: str, turns: int = 3) -> Seconds:
    """A ``safe-probe`` command in new processes."""
    return _seconds(what, [_spent(_MAIN, line) for _ in range(turns)], goal, of, None)


def params_command() -> list[Ratio]:
    """``safe-probe params`` of a 13B model against the imports that it cannot do without.

    peft imports bitsandbytes where that is installed (the extra ``quant``, and the tests'), which
    a plain installation has not.
    """
    line = ["params", "--config", "phase1"]
    plain = "import sys; sys.modules['bitsandbytes'] = None"
    ways = {
        "noise": (_IMPORTS, []),
        "the same and peft": (f"{_IMPORTS}, peft", []),
        "the same and peft, no bitsandbytes": (f"{plain}; {_IMPORTS}, peft", []),
        "safe-probe params --config phase1": (_MAIN, line),
        "safe-probe params --config phase1, no bitsandbytes": (f"{plain}; {_MAIN}", line),
    }
    table = f"python -c '{_IMPORTS}'"
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(PAIRS):
        base = _spent(_IMPORTS, [])[0]
        for name, (code, arguments) in ways.items():
            found[name].append((_spent(code, arguments)[0], base))
    goals = {name: 1.15 for name in ways if name.startswith("safe-probe")}
    return [_ratio(table, name, pairs, goals.get(name)) for name, pairs in found.items()]


def _ratio(
    table: str, name: str, found: Sequence[tuple[float, float]], goal: float | None
) -> Ratio:
    ratios = [own / base for own, base in found]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    milliseconds = 1000 * statistics.median(own for own, _ in found)
    return Ratio(table, name, middle, low, high, milliseconds, len(found), goal)


def _seconds(
    command: str, found: Sequence[tuple[float, float]], goal: float, of: str, light: bool | None
) -> Seconds:
    cpu, walls = zip(*found, strict=True)
    median, wall = statistics.median(cpu), statistics.median(walls)
    return Seconds(command, median, min(cpu), max(cpu), wall, goal, of, light)


def _spent(code: str, arguments: Sequence[str]) -> tuple[float, float]:
    """CPU and wall seconds of one process that does what it is asked to.

    Raises:
        RuntimeError: it ended with an error; 1 is that of a verdict or a finding.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        raise RuntimeError(f"{' '.join(arguments)} ends with {done.returncode}: {done.stderr}")
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu, end - start


def _is_light(line: Sequence[str]) -> bool:
    """Whether the command leaves torch and transformers alone."""
    code = (
        "import contextlib, sys\nfrom safe_probe.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(sys.argv[1:])\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, check=False)
    return done.returncode == 0
