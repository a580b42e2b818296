"""The exact next command: Phase 2, a fix, the missing measurement, resuming, or the rollback."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from configs import follow_up
from configs.errors import ConfigError
from configs.model_configs import CONFIGS
from configs.overrides import apply_values, parse_assignments
from configs.schema import RunConfig
from probes.findings.finding import Finding, Link
from probes.findings.thresholds import Thresholds
from reports.criterion import Outcome
from reports.grade import Grade
from reports.run import Run


@dataclass(frozen=True)
class NextStep:
    """One command and why it is the one."""

    kind: str
    """``wait``, ``phase2``, ``fix``, ``measure``, ``resume`` or ``rollback``."""
    command: str
    """To be typed as it is."""
    why: str
    """One sentence."""
    changes: tuple[str, ...] = ()
    """What it changes in the configuration: ``key: before -> after``."""

    def to_json(self) -> dict[str, Any]:
        """The step as JSON-safe values."""
        return asdict(self) | {"changes": list(self.changes)}


def next_step(
    run: Run, decision: str, outcomes: Sequence[Outcome], broken: Finding | None
) -> NextStep:
    """What to type next.

    In this order: a run that is training is watched; a broken link is mended; a run that stopped
    midway goes on; what decides but is unknown is measured; a success goes on to Phase 2; a partial
    success, or one of too few steps, trains on; what is blocked with every link whole goes back to
    the baseline.

    Args:
        run: the run.
        decision: ``PROCEED``, ``PARTIAL`` or ``BLOCKED``.
        outcomes: of all criteria.
        broken: the earliest broken link; None when all are whole.
    """
    if run.running and run.checkpoint is None:
        command = shlex.join(["safe-probe", "watch", str(run.path)])
        return NextStep("wait", command, f"the run is training, at step {run.last_step}")
    if broken is not None and broken.link < Link.SCORE:  # a score says that, not where
        return _fix(run.config, broken)
    if not run.finished and run.checkpoint is None:
        command = shlex.join(["safe-train", _known(run.config.name), "--resume", str(run.path)])
        return NextStep("resume", command, f"the run stopped at step {run.last_step}")
    unknown = [o for o in outcomes if o.criterion.decides and o.grade is Grade.UNKNOWN]
    if unknown:
        return NextStep(
            "measure",
            run.fill(unknown[0].criterion.to_measure),
            "not measured yet: " + ", ".join(o.criterion.title for o in unknown),
        )
    if decision == "PROCEED":
        return NextStep(
            "phase2",
            shlex.join(follow_up.command_line(follow_up.next_phase(run.config))),
            "every deciding criterion passes: remove the bottleneck and train longer",
        )
    if decision == "PARTIAL":
        return _longer(run.config, "no broken link was found, and the score is on its way")
    if run.now < Thresholds().warm:
        return _longer(run.config, f"no link is broken, and {run.now} steps are too few to tell")
    return _rollback(run)


def _fix(config: RunConfig, finding: Finding) -> NextStep:
    """The remedy's settings as a command; without any, what explains the finding."""
    changes = _settings(finding.remedy, config)
    if not changes:
        why = f"{finding.title}: {finding.remedy}"
        return NextStep("fix", f"safe-probe explain {finding.code}", why)
    return NextStep(
        "fix",
        shlex.join(follow_up.mended(config, changes)),
        f"{finding.title} ({finding.code}): {finding.remedy}",
        _changed(follow_up.differences(config, apply_values(config, changes))),
    )


def _settings(remedy: str, config: RunConfig) -> dict[str, Any]:
    """The ``section.key=value`` in a remedy that are settings and would change something."""
    after, named = config, list[str]()
    for text in re.findall(r"[a-z_]+(?:\.[a-z_]+)+=[^\s,;)`]+", remedy):
        try:
            values = parse_assignments([text.rstrip(".")])
            after = apply_values(after, values)
        except ConfigError:  # words that only look like a setting, or that do not fit this run
            continue
        named += values
    return {k: new for k, _, new in follow_up.differences(config, after) if k in named}


def _longer(config: RunConfig, why: str) -> NextStep:
    epochs = 2 * config.optim.epochs
    return NextStep(
        "fix",
        shlex.join(follow_up.mended(config, {"optim.epochs": epochs})),
        f"{why}: train twice as long",
        (f"optim.epochs: {config.optim.epochs} -> {epochs}",),
    )


def _rollback(run: Run) -> NextStep:
    return NextStep(
        "rollback",
        shlex.join(["safe-train", "rollback", str(run.path), "--apply"]),
        "no broken link explains it: back to the baseline, on the same pieces and data",
        _changed(follow_up.rollback_differences(run.config)),
    )


def _changed(differences: Sequence[tuple[str, Any, Any]]) -> tuple[str, ...]:
    return tuple(f"{key}: {old} -> {new}" for key, old, new in differences)


def _known(name: str) -> str:
    """A command of ``safe-train``; when resuming any will do, the run's folder decides."""
    return name if name in CONFIGS else next(iter(CONFIGS))
