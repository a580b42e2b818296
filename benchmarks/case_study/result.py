"""What a finished run says, as one row of plain values."""

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from probes.findings.facts import Facts
from probes.findings.finding import Finding, Severity
from probes.findings.judge import Verdict, judge
from reports.report import Report
from reports.run import read_run
from safe.evaluation.bootstrap import bootstrap_interval

Row = dict[str, Any]


def row_of(name: str, seed: int, folder: Path, unheard: Collection[str]) -> Row:
    """Everything of a run that the table, the figure and the conclusions rest on.

    Args:
        name: of the variant.
        seed: of the run.
        folder: of the run.
        unheard: ids of the test clips whose recordings were kept out of training.
    """
    run = read_run(folder)
    report = Report.of(run)
    scores, clips = run.scores, run.per_clip_cider
    losses = [float(step["loss"]) for step in run.steps]
    before = judge(record for record in run.probed if record.step == 0)
    return {
        "variant": name,
        "seed": seed,
        "dtype": run.config.model.dtype,
        "scale": run.config.model.projector.scale,
        "gate": run.config.model.fusion.gate_init,
        "steps": run.last_step,
        "trainable": run.facts.value("parameters", "model", "trainable"),
        "cider": {"value": scores["cider"], "interval": list(scores["cider_interval"])},
        "heard": _part(clips[clip] for clip in clips if clip not in unheard),
        "unheard": _part(clips[clip] for clip in clips if clip in unheard),
        "controls": {k: v["cider"] for k, v in run.evaluation["controls"].items()},
        "floors": {k: v["cider"] for k, v in run.evaluation["floors"].items()},
        "versus_shuffled": run.evaluation["versus_shuffled"],
        "first_loss": losses[0],
        "last_loss": sum(losses[-10:]) / len(losses[-10:]),
        "first_gradient": run.steps[0]["grad_norm/total"],
        "before": _judged(before) | {"contribution": _contributions(run.start)},
        "after": _judged(report.findings) | {
            "contribution": _contributions(run.facts),
            # nats per token that another clip's audio costs on validation clips
            "influence": run.facts.value("influence", "signal:swapped", "loss_change"),
        },
        "verdict": report.verdict.decision.name,
        "train_seconds": run.resources.get("train_seconds"),
    }  # fmt: skip


def _part(values: Iterable[float]) -> Row:
    chosen = list(values)
    return {
        "clips": len(chosen),
        "value": math.fsum(chosen) / len(chosen),
        "interval": list(bootstrap_interval(chosen)),
    }


def _judged(findings: Collection[Finding]) -> Row:
    verdict = Verdict.of(tuple(findings))
    return {
        "findings": sorted({f.code for f in findings if f.severity > Severity.NOTE}),
        "root": None if verdict.root is None else verdict.root.code,
        "severity": None if verdict.severity is None else verdict.severity.word,
        "text": str(verdict),
    }


def _contributions(facts: Facts) -> dict[str, float]:
    """Layer to ||fused - hidden|| / ||hidden||, the median over ordinary text tokens."""
    found = facts.layers("magnitude", "fusion", "contribution_median")
    return {str(layer): value for layer, value in found.items()}
