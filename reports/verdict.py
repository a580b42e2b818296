"""PROCEED, PARTIAL, UNFINISHED or BLOCKED: from the outcomes, and the one thing to do next.

BLOCKED      a deciding criterion fails, or there is no final score
UNFINISHED   none fails, and there is no final score yet: the training was stopped, or goes on
PARTIAL      none fails, but one is partial or unknown
PROCEED      every deciding criterion passes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from probes.findings.finding import Finding, Severity
from probes.findings.judge import root_cause
from reports.criterion import Outcome
from reports.grade import Grade
from reports.next_step import NextStep, next_step
from reports.run import Run


class Decision(IntEnum):
    """Better is larger."""

    BLOCKED = 0
    UNFINISHED = 1
    PARTIAL = 2
    PROCEED = 3


@dataclass(frozen=True)
class Verdict:
    """What to do with the experiment."""

    decision: Decision
    reason: str
    """One or two sentences with the numbers that decided."""
    root: Finding | None
    """The earliest broken link; None when there is none."""
    next_step: NextStep
    """The exact next command and why."""

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON-safe values."""
        return {
            "decision": self.decision.name,
            "reason": self.reason,
            "root": None if self.root is None else self.root.code,
            "next": self.next_step.to_json(),
        }


def decision_of(outcomes: Sequence[Outcome], *, over: bool = True) -> Decision:
    """The decision; criteria that do not decide are not looked at.

    A missing final score blocks: there is nothing to proceed on. Unless the training is not
    ``over``: then nothing is known against the signal.
    """
    deciding = [o for o in outcomes if o.criterion.decides]
    grades = {o.grade for o in deciding}
    score = next((o for o in deciding if o.criterion.name == "final_cider"), None)
    if Grade.FAIL in grades:
        return Decision.BLOCKED
    if score is None or score.grade is Grade.UNKNOWN:
        return Decision.BLOCKED if over else Decision.UNFINISHED
    return Decision.PROCEED if grades == {Grade.PASS} else Decision.PARTIAL


def decide(run: Run, outcomes: Sequence[Outcome]) -> Verdict:
    """The verdict on a run; the same outcomes give the same one."""
    over = run.finished or run.diverged or run.checkpoint is not None
    decision = decision_of(outcomes, over=over)
    root = root_cause(run.findings)
    broken = root if root is not None and root.severity is Severity.ERROR else None
    return Verdict(
        decision,
        "; ".join([*_state(run), *_reason(decision, outcomes, broken)]),
        root,
        next_step(run, decision.name, outcomes, broken),
    )


def _state(run: Run) -> list[str]:
    """What is to be known before the numbers: a run that is not over, files that are damaged."""
    said = []
    if run.running and run.checkpoint is None:
        said.append(f"training now, at step {run.now}")
    elif not run.finished and run.checkpoint is None:
        said.append(
            f"stopped at step {run.now}, epoch {run.epochs_done:.3g} of {run.config.optim.epochs}"
        )
    if run.damaged:
        said.append(f"damaged files: {', '.join(run.damaged)}")
    return said


def _reason(decision: Decision, outcomes: Sequence[Outcome], broken: Finding | None) -> list[str]:
    deciding = [o for o in outcomes if o.criterion.decides]
    culprits = {
        Decision.PROCEED: (Grade.PASS,),
        Decision.PARTIAL: (Grade.PARTIAL, Grade.UNKNOWN),
        Decision.UNFINISHED: (),
        Decision.BLOCKED: (Grade.FAIL,),
    }[decision]
    told = [o for o in deciding if o.grade in culprits]
    if not told:  # there is no score
        told = [o for o in deciding if o.grade is Grade.UNKNOWN]
    parts = [
        f"{o.criterion.title}: {'' if o.grade is Grade.PASS else o.grade.value + ', '}{o.evidence}"
        for o in told
    ]
    if broken is not None:
        parts.insert(0, f"earliest broken link: {broken.place}, {broken.title} ({broken.code})")
    return parts
