"""Which pictures a page has, in which section, and what to run for those that it lacks."""

import shlex
from dataclasses import dataclass

from configs.claims import EXPECTED_CIDER, PARTIAL_FROM, VERIFIED_ABOVE
from reports.criteria import CRITERIA
from reports.grade import Within
from reports.plots import curves, gradients, influence, layers
from reports.plots.plot import Plot
from reports.run import CHECK, Run

THRESHOLDS = {"verified above": VERIFIED_ABOVE, "partial from": PARTIAL_FROM}
BAND = tuple((float(epoch), *ends) for epoch, ends in EXPECTED_CIDER.items())
"""Epoch and expected CIDEr."""


@dataclass(frozen=True)
class PlotSection:
    """Pictures under one heading."""

    key: str
    """Its anchor."""
    title: str
    plots: tuple[Plot, ...]
    missing: tuple[tuple[str, str], ...]
    """What was not measured, and the command that measures it."""


def plot_sections(run: Run) -> tuple[PlotSection, ...]:
    """Magnitude, gates, gradient flow, curves and influence, in this order."""
    folder = shlex.quote(str(run.path))
    check = f"safe-probe check {folder} --output {folder}/{CHECK}"
    train = f"safe-train {shlex.quote(run.config.name)} --resume {folder}"
    evaluate = f"safe-train evaluate {folder}"
    facts = run.facts
    sections = (
        ("magnitudes", "Magnitude", (
            (layers.magnitude(facts), "the magnitude of text and audio", check),
            (layers.contribution(facts, run.start, _contribution()),
             "the audio's contribution", check),
        )),
        ("gate", "Gates", ((curves.gates(run), "the gates", check),)),
        ("gradient", "Gradient flow", (
            (gradients.heat(run), "the gradients of the steps", train),
            (gradients.components(run), "the gradient of each component", check),
        )),
        ("curves", "Loss and CIDEr", (
            (curves.loss(run), "the training loss", train),
            (curves.cider(run, BAND, THRESHOLDS), "CIDEr", evaluate),
        )),
        ("influences", "Influence", (
            (influence.controls(facts), "the audio against its controls", check),
            (influence.layers(facts), "the influence of each fusion layer", check),
        )),
    )  # fmt: skip
    return tuple(
        PlotSection(
            key, title, tuple(plot for plot, *_ in rows if plot is not None),
            _missing([(what, command) for plot, what, command in rows if plot is None]),
        )
        for key, title, rows in sections
    )  # fmt: skip


def _missing(found: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """What one command measures, in one line."""
    lines: dict[str, list[str]] = {}
    for what, command in found:
        lines.setdefault(command, []).append(what)
    return tuple((", ".join(names), command) for command, names in lines.items())


def _contribution() -> tuple[float, float]:
    """What the criterion expects of the contribution at the start."""
    condition = next(c.condition for c in CRITERIA if c.name == "contribution")
    assert isinstance(condition, Within)
    return condition.low, condition.high
