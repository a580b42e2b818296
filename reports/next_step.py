"""The exact next command: Phase 2, a fix, the missing measurement, resuming, or the rollback."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from configs import follow_up
from configs.errors import ConfigError
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
    """``wait``, ``fix``, ``resume``, ``measure``, ``phase2``, ``done``, ``rollback``, ``phase1``"""
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
    midway goes on, more slowly when it diverged; what decides but is unknown is measured; a success
    goes on to Phase 2; a partial success, or one of too few steps, trains on; what is blocked with
    every link whole goes back to the baseline.

    Args:
        run: the run.
        decision: ``PROCEED``, ``PARTIAL``, ``UNFINISHED`` or ``BLOCKED``.
        outcomes: of all criteria.
        broken: the earliest broken link; None when all are whole.
    """
    if run.running and run.checkpoint is None:
        command = shlex.join(["safe-probe", "watch", str(run.path)])
        return NextStep("wait", command, f"the run is training, at step {run.last_step}")
    if broken is not None and broken.link < Link.SCORE:  # a score says that, not where
        return _fix(run.config, broken)
    if run.diverged and run.checkpoint is None:
        rates = {
            k: follow_up.flat(run.config)[k] / 5 for k in ("optim.lr_projector", "optim.lr_adapter")
        }
        return NextStep(
            "fix",
            shlex.join(follow_up.mended(run.config, rates)),
            f"loss or gradient stopped being finite by step {run.last_step}; going on would repeat "
            "it: a fifth of the learning rates",
            _changed(follow_up.differences(run.config, apply_values(run.config, rates))),
        )
    if not run.finished and run.checkpoint is None:
        command = shlex.join(
            ["safe-train", follow_up.command_name(run.config), "--resume", str(run.path)]
        )
        return NextStep("resume", command, f"the run stopped at step {run.last_step}")
    unknown = [o for o in outcomes if o.criterion.decides and o.grade is Grade.UNKNOWN]
    if unknown:
        return NextStep(
            "measure",
            run.fill(unknown[0].to_measure),
            "not measured yet: " + ", ".join(o.criterion.title for o in unknown),
        )
    if decision == "PROCEED" and run.config.name == follow_up.NEXT_PHASE:
        command = shlex.join(["safe-probe", "report", str(run.path), "--html"])
        return NextStep("done", command, "the last phase of the plan is passed: keep its page")
    if decision == "PROCEED":
        return NextStep(
            "phase2",
            shlex.join(follow_up.advanced(run.config)),
            "every deciding criterion passes: remove the bottleneck and train longer",
        )
    if decision == "PARTIAL":
        return _longer(run.config, "no broken link was found, and the score is on its way")
    if run.now < Thresholds().warm:
        return _longer(
            run.config,
            f"no link before the score is broken, and {run.now} steps are too few to tell",
        )
    return _rollback(run)


_SUSPECTS: dict[Link, tuple[str, ...]] = {
    Link.DATA: ("data.",),
    Link.ENCODER: ("data.audio", "model.audio_"),
    Link.PROJECTOR: ("model.projector.",),
    Link.FUSION: ("model.fusion.", "model.projector.scale"),
    Link.GATE: ("model.fusion.gate",),
    Link.GRADIENT: ("model.fusion.", "model.projector.", "optim."),
    Link.OPTIMIZER: ("optim.",),
    Link.INFLUENCE: ("model.fusion.", "model.projector."),
}
"""By broken link the settings that may have broken it, when the run set them by itself."""


def _fix(config: RunConfig, finding: Finding) -> NextStep:
    """The remedy's settings as a command, or the run's own suspicious ones taken back.

    Without either, what explains the finding: the fault is not in the configuration.
    """
    changes, why = _settings(finding.remedy, config), finding.remedy
    if not changes:
        usual, suspects = follow_up.own_settings(config), _SUSPECTS.get(finding.link, ())
        changes = {k: before for k, (before, _) in usual.items() if k.startswith(suspects)}
        why = f"the run had set {' and '.join(changes)} by itself, there: back to the usual"
    if not changes:
        why = f"{finding.title}: {finding.remedy}"
        return NextStep("fix", f"safe-probe explain {finding.code}", why)
    return NextStep(
        "fix",
        shlex.join(follow_up.mended(config, changes)),
        f"{finding.title} ({finding.code}): {why}",
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
    changes = {"optim.epochs": 2 * config.optim.epochs}
    if config.optim.max_steps is not None:
        changes["optim.max_steps"] = 2 * config.optim.max_steps
    return NextStep(
        "fix",
        shlex.join(follow_up.mended(config, changes)),
        f"{why}: train twice as long",
        _changed(follow_up.differences(config, apply_values(config, changes))),
    )


def _rollback(run: Run) -> NextStep:
    if run.config.name == follow_up.BASELINE:
        return NextStep(
            "phase1",
            shlex.join(follow_up.command_line(follow_up.following(run.config, "phase1"))),
            "the baseline itself is blocked, with no broken link: try Phase 1",
        )
    return NextStep(
        "rollback",
        shlex.join(["safe-train", "rollback", str(run.path), "--apply"]),
        "no broken link explains it: back to the baseline, on the same pieces and data",
        _changed(follow_up.rollback_differences(run.config)),
    )


def _changed(differences: Sequence[tuple[str, Any, Any]]) -> tuple[str, ...]:
    return tuple(f"{key}: {old} -> {new}" for key, old, new in differences)
