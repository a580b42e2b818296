"""Runs faults and healthy set-ups, and counts."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.faults.bench import Bench
from benchmarks.faults.registry import Fault
from benchmarks.faults.standins import NAMES, stand_ins
from probes.findings.finding import Finding, Severity


@dataclass(frozen=True)
class Outcome:
    """What was said about one set-up."""

    name: str
    expected: tuple[str, ...]
    """``CODE component``; empty for a healthy set-up."""
    root: str | None
    """The root cause that the verdict names."""
    found: tuple[str, ...]
    """All findings from warnings on, each once, in their order."""
    errors: tuple[str, ...]
    """Those of them that are errors."""
    others: Mapping[str, bool]
    """Which stand-ins cried."""
    step: int
    """Optimizer steps done when it was diagnosed."""
    seconds: float
    """Of the diagnosis."""

    @property
    def hit(self) -> bool:
        """Whether an expected code was found at its component."""
        return bool(set(self.expected) & set(self.found))

    @property
    def named(self) -> bool:
        """Whether it is even what the verdict names as the root cause."""
        return self.root in self.expected


def examine(name: str, make: Callable[[], Bench], expected: Iterable[str] = ()) -> Outcome:
    """Diagnose a set-up, then let the stand-ins train it."""
    bench = make()
    start = time.perf_counter()
    diagnosis = bench.diagnose()
    seconds = time.perf_counter() - start
    findings = [f for f in diagnosis.findings if f.severity >= Severity.WARNING]
    root = diagnosis.verdict.root
    return Outcome(
        name=name,
        expected=tuple(expected),
        root=None if root is None else _label(root),
        found=tuple(dict.fromkeys(map(_label, findings))),
        errors=tuple(dict.fromkeys(_label(f) for f in findings if f.severity == Severity.ERROR)),
        others=stand_ins(bench),
        step=bench.step,
        seconds=seconds,
    )


def examine_fault(fault: Fault) -> Outcome:
    """The outcome of a planted fault."""
    return examine(fault.name, fault.build, (f"{code} {part}" for code, part in fault.expected))


def totals(faults: list[Outcome], healthy: list[Outcome]) -> dict[str, Any]:
    """The figures under the table."""
    return {
        "faults": len(faults),
        "found": sum(o.hit for o in faults),
        "named_as_root": sum(o.named for o in faults),
        "healthy": len(healthy),
        "healthy_with_error": sum(bool(o.errors) for o in healthy),
        "healthy_with_warning": sum(bool(o.found) for o in healthy),
        "others": {
            name: {
                "faults": sum(o.others[name] for o in faults),
                "healthy": sum(o.others[name] for o in healthy),
            }
            for name in NAMES
        },
        "seconds": round(sum(o.seconds for o in (*faults, *healthy)), 1),
    }


def to_json(faults: list[Outcome], healthy: list[Outcome]) -> dict[str, Any]:
    """Everything as JSON values."""
    return {
        "faults": [asdict(o) | {"hit": o.hit, "named": o.named} for o in faults],
        "healthy": [asdict(o) for o in healthy],
        "totals": totals(faults, healthy),
    }


def _label(finding: Finding) -> str:
    return f"{finding.code} {finding.component.partition(':')[0]}"
