"""What the output says to another signal, and to none."""

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from probes.findings.facts import Facts
from safe_probe.views.table import bar, number, table

_THIRDS = ("first", "middle", "last")


def influence_view(facts: Facts) -> RenderableType:
    """Controls and left-out layers against the own signal; by third of the caption; parity."""
    parts: list[RenderableType] = [_controls(facts)]
    if facts.all("influence", "loss_change_first"):
        parts += ["", _by_third(facts)]
    parity = _parity(facts)
    return Group(*parts, *([Text(parity)] if parity else []))


def _controls(facts: Facts) -> Table:
    own = facts.value("influence", "signal:own", "loss")
    view = table(
        f"influence: own loss {number(own)} nats/token; each control against it",
        "control", "loss", "change", "+-", "KL", "logits changed", "<KL, log",
    )  # fmt: skip
    for r in facts.all("influence", "changed"):
        if r.component == "signal:repeat":
            continue
        values = [
            facts.value("influence", r.component, s, r.layer)
            for s in ("loss", "loss_change", "loss_change_error", "kl")
        ]
        kl = values[3] or 0.0
        view.add_row(
            _name(r.component, r.layer), number(values[0]), number(values[1], "+.3g"),
            number(values[2], ".2g"), number(values[3], ".2g"), f"{r.value:.1%}",
            bar(1 + math.log10(kl) / 8 if kl > 0 else 0.0),
        )  # fmt: skip
    return view


def _by_third(facts: Facts) -> Table:
    view = table(
        "change of the loss by third of the caption\n(nats/token; above 0: the sound helps)",
        "control", *_THIRDS,
    )  # fmt: skip
    for r in facts.all("influence", "loss_change_first"):
        if r.component == "signal:repeat" or r.layer is not None:
            continue
        values = [facts.value("influence", r.component, f"loss_change_{t}") for t in _THIRDS]
        view.add_row(r.component, *(number(value, "+.3g") for value in values))
    return view


def _parity(facts: Facts) -> str:
    """Whether a closed gate leaves the bare backbone; empty when it was not measured."""
    parts = []
    for prefix, where in (("", ""), ("pictures_", " with pictures")):
        for r in facts.all("influence", f"{prefix}parity_changed"):
            largest = number(facts.value("influence", r.component, f"{prefix}parity_max_change"))
            differ = f"{r.value:.1%} of the logits differ, by up to {largest}"
            parts.append(f"{r.component}{where} {'bit for bit' if r.value == 0 else differ}")
    return f"parity with the bare backbone: {'; '.join(parts)}" if parts else ""


def _name(component: str, layer: int | None) -> str:
    return component if layer is None else f"without layer {layer}"
