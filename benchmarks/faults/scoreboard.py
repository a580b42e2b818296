"""Runs faults and healthy set-ups, and counts."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.faults.bench import Bench
from benchmarks.faults.registry import Fault, Layers
from benchmarks.faults.standins import INSTALLED, NAMES, stand_ins
from probes.findings.catalogue import get_rule
from probes.findings.finding import Finding, Severity

FIRST_STEPS = 1
"""A fault that a training cannot survive must be found after this many optimizer steps at most."""


@dataclass(frozen=True)
class Outcome:
    """What was said about one set-up."""

    name: str
    expected: tuple[str, ...]
    """``CODE component``; empty for a healthy set-up."""
    root: str | None
    """The root cause that the verdict names."""
    found: Mapping[str, tuple[int, ...]]
    """All findings from warnings on, in their order, with the layers they name (often none)."""
    errors: tuple[str, ...]
    """Those of them that are errors."""
    planted: tuple[int, ...] | None
    """Fusion layers in which the fault is; None when it depends on sizes."""
    others: Mapping[str, bool | None]
    """Which stand-ins cried; None for one that is not installed, or failed."""
    step: int
    """Optimizer steps done when it was diagnosed."""
    seconds: float
    """Of the diagnosis."""

    @property
    def hit(self) -> bool:
        """Whether an expected code was found at its component, and at its layers."""
        return any(self._right_place(label) for label in self.expected)

    def _right_place(self, label: str) -> bool:
        layers = self.found.get(label)
        return layers is not None and (not layers or self.planted in (None, layers))

    @property
    def by_layer(self) -> bool:
        """Whether its finding is about layers that were known beforehand."""
        return self.planted is not None and any(self.found.get(label) for label in self.expected)

    @property
    def named(self) -> bool:
        """Whether it is even what the verdict names as the root cause."""
        return self.root in self.expected

    @property
    def hard(self) -> bool:
        """Whether the finding that names it is an error: training on would be a waste."""
        codes = {label.split()[0] for label in self.expected}
        return any(get_rule(code).severity == Severity.ERROR for code in codes)

    @property
    def early(self) -> bool:
        """Whether it was found at once."""
        return self.hit and self.step <= FIRST_STEPS


def examine(
    name: str,
    make: Callable[[], Bench],
    expected: tuple[str, ...] = (),
    layers: Layers = "all",
) -> Outcome:
    """Diagnose a set-up, then let the stand-ins train it."""
    bench = make()
    blocks = tuple(bench.trainer.model.fusion.blocks())
    start = time.perf_counter()
    diagnosis = bench.diagnose()
    seconds = time.perf_counter() - start
    findings = [f for f in diagnosis.findings if f.severity >= Severity.WARNING]
    root = diagnosis.verdict.root
    return Outcome(
        name=name,
        expected=expected,
        root=None if root is None else _label(root),
        found=_by_label(findings),
        errors=tuple(_by_label([f for f in findings if f.severity == Severity.ERROR])),
        planted={"all": blocks, "first": blocks[:1], "last": blocks[-1:], "any": None}[layers],
        others=stand_ins(bench),
        step=bench.step,
        seconds=seconds,
    )


def examine_fault(fault: Fault) -> Outcome:
    """The outcome of a planted fault."""
    expected = tuple(f"{code} {part}" for code, part in fault.expected)
    return examine(fault.name, fault.build, expected, fault.layers)


def totals(faults: list[Outcome], healthy: list[Outcome]) -> dict[str, Any]:
    """The figures under the table; None for a stand-in that is not installed."""
    hard = [o for o in faults if o.hard]
    return {
        "faults": len(faults),
        "found": sum(o.hit for o in faults),
        "named_as_root": sum(o.named for o in faults),
        "with_layers": sum(o.by_layer for o in faults),
        "found_at_their_layers": sum(o.by_layer and o.hit for o in faults),
        "hard": len(hard),
        "hard_found_within_a_step": sum(o.early for o in hard),
        "healthy": len(healthy),
        "healthy_with_error": sum(bool(o.errors) for o in healthy),
        "healthy_with_warning": sum(bool(o.found) for o in healthy),
        "others": {
            name: _cries(faults, healthy, name) if name in INSTALLED else None for name in NAMES
        },
        "seconds": round(sum(o.seconds for o in (*faults, *healthy)), 1),
    }


def to_json(faults: list[Outcome], healthy: list[Outcome]) -> dict[str, Any]:
    """Everything as JSON values."""
    said = ("hit", "named", "hard", "early")
    return {
        "faults": [asdict(o) | {name: getattr(o, name) for name in said} for o in faults],
        "healthy": [asdict(o) for o in healthy],
        "totals": totals(faults, healthy),
    }


def _cries(faults: list[Outcome], healthy: list[Outcome], name: str) -> dict[str, int]:
    """How often a stand-in cried, and how often it failed."""
    return {
        "faults": sum(o.others[name] is True for o in faults),
        "healthy": sum(o.others[name] is True for o in healthy),
        "failed": sum(o.others[name] is None for o in (*faults, *healthy)),
    }


def _by_label(findings: list[Finding]) -> dict[str, tuple[int, ...]]:
    """Layers by ``CODE component``, in the findings' order."""
    layers: dict[str, set[int]] = {}
    for finding in findings:
        named = layers.setdefault(_label(finding), set())
        if finding.layer is not None:
            named.add(finding.layer)
    return {label: tuple(sorted(named)) for label, named in layers.items()}


def _label(finding: Finding) -> str:
    return f"{finding.code} {finding.component.partition(':')[0]}"
