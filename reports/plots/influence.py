"""What the audio does to the output: against each control, and through each fusion layer."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from probes.findings.facts import Facts
from reports.plots.palette import BLUE, INK, RED
from reports.plots.plot import Plot, Table, drawable, label, legend, picture
from reports.printed import number

CONTROLS = {
    "signal:swapped": "another clip's audio",
    "signal:silence": "zeros",
    "signal:silence_given": "silence",
    "signal:noise": "noise",
    "signal:none": "no audio",
    "gate:zero": "gates at 0",
    "fusion:off": "fusion off",
}
"""Component of a record to the control in words."""
_MOST = 48
Bar = tuple[str, float, float, float]
"""Name, change of the loss, its standard error, KL (NaN where there is none)."""


def controls(facts: Facts) -> Plot | None:
    """Change of the loss under each control; None when it was not measured."""
    found = [
        _bar(facts, component, None, name)
        for component, name in CONTROLS.items()
        if facts.value("influence", component, "kl") is not None
    ]
    return _picture("controls", "The audio against its controls", "control", found)


def layers(facts: Facts) -> Plot | None:
    """Change of the loss when one fusion layer is left out; None when it was not measured."""
    found = [
        _bar(facts, "fusion", layer, f"without layer {layer}")
        for layer in facts.layers("influence", "fusion", "kl")
    ]
    return _picture("influence", "Influence of each fusion layer", "left out", found)


def _bar(facts: Facts, component: str, layer: int | None, name: str) -> Bar:
    change, error, kl = (
        facts.value("influence", component, statistic, layer)
        for statistic in ("loss_change", "loss_change_error", "kl")
    )
    values = (math.nan if value is None else value for value in (change, error, kl))
    return (name, *values)  # type: ignore[return-value]  # three of them


def _picture(key: str, title: str, what: str, bars: Sequence[Bar]) -> Plot | None:
    bars = bars[:_MOST]
    if not bars:
        return None
    names = [label(bar[0]) for bar in bars]
    change, error, kl = (np.array([bar[i] for bar in bars]) for i in (1, 2, 3))
    shown, spread, other = drawable(change), np.nan_to_num(2 * drawable(error)), drawable(kl)
    places = np.arange(len(bars))

    def draw(axes: Axes) -> None:
        axes.errorbar(
            shown, places - 0.12, xerr=np.abs(spread), color=BLUE, marker="o", ls="",
            capsize=2.5, elinewidth=1.2, label="loss, change ± 2 standard errors",
        )  # fmt: skip
        axes.plot(other, places + 0.18, color=RED, marker="D", ls="", label="KL")
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_yticks(places, names)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("nats/token (right of 0: the own audio helps)")
        legend(axes)

    about = "Change of the loss, nats/token: " + ", ".join(
        f"{name} {number(value)}" for name, value in zip(names, change, strict=True)
    )
    table = Table(
        (what, "change of the loss", "standard error", "KL (nats/token)"),
        list(zip(names, change, error, kl, strict=True)),
    )
    return picture(key, title, about + ".", table, draw, height=1.1 + 0.32 * len(bars))
