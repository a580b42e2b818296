"""Text and audio by depth: how large the hidden states are, and how much of them is audio."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from probes.findings.facts import Facts
from probes.findings.thresholds import Thresholds
from reports.plots.palette import BLUE, DASHES, GREEN, GREY, PURPLE, RED
from reports.plots.plot import (
    Plot,
    Table,
    arms,
    drawable,
    feet,
    legend,
    log_axis,
    picture,
    whole_numbers,
)
from reports.printed import number

INPUT = -1
"""Where the input of the decoder is drawn: before layer 0."""
Spread = Mapping[int, tuple[float, float, float]]
"""Layer (or :data:`INPUT`) to 5th percentile, median and 95th percentile."""


def magnitude(facts: Facts) -> Plot | None:
    """L2 per token of text and audio, by layer; None when it was not measured."""
    text, audio = _spread(facts, "text", "l2"), _spread(facts, "projector", "l2")
    spliced = _spread(facts, "signal", "l2")
    if not text and not audio:
        return None
    fused = sorted(facts.layers("magnitude", "fusion", "contribution_median"))

    def draw(axes: Axes) -> None:
        _band(axes, text, BLUE, "o", "text: median, 5% to 95%")
        _band(axes, spliced, PURPLE, "^", "audio among the text")
        if audio:
            low, middle, high = drawable(next(iter(audio.values())), positive=True)
            if np.isfinite(middle):
                axes.axhline(middle, color=RED, ls=DASHES[1], label="audio tokens")
            if np.isfinite(low + high):
                axes.axhspan(low, high, color=RED, alpha=0.15, lw=0)
        log_axis(axes)
        for i, layer in enumerate(fused):
            axes.axvline(layer, color=GREY, lw=0.8, ls=DASHES[2], label="" if i else "fusion")
        _depth(axes, [*text, *spliced, *fused])
        axes.set_ylabel("L2 per token")
        legend(axes)

    about = "L2 per token. Text: " + _told(text)
    if audio:
        about += f"; audio tokens: {number(next(iter(audio.values()))[1])}"
    rows = [
        (name, _place(layer), *values)
        for name, found in (("text", text), ("audio tokens", audio), ("audio among text", spliced))
        for layer, values in found.items()
    ]
    table = Table(("tokens", "at", "5%", "median L2", "95%"), rows)
    return picture("magnitude", "Magnitude by layer", about + ".", table, draw)


def contribution(facts: Facts, start: Facts, expected: tuple[float, float]) -> Plot | None:
    """||fused - hidden|| / ||hidden|| by fusion layer; None when it was not measured.

    Args:
        facts: what was measured last.
        start: what was measured before training.
        expected: lowest and highest contribution of a good start.
    """
    found = _spread(facts, "fusion", "contribution")
    if not found:
        return None
    before = start.layers("magnitude", "fusion", "contribution_median")
    loud = Thresholds().loud

    def draw(axes: Axes) -> None:
        layers = np.array(list(found))
        low, middle, high = drawable(list(found.values()), positive=True).T
        shown = np.isfinite(middle)
        axes.errorbar(
            layers[shown], middle[shown], yerr=arms(low, middle, high)[:, shown], color=RED,
            marker="D", ls="", capsize=3, elinewidth=1.2, label="median, 5% to 95%",
        )  # fmt: skip
        axes.plot(
            list(before), drawable(list(before.values()), positive=True), color=BLUE, marker="o",
            markerfacecolor="none", ls="", label="median before training" if before else "",
        )  # fmt: skip
        feet(axes, layers[~shown], "0 or not finite")
        axes.axhspan(*expected, color=GREEN, alpha=0.22, lw=0, label="expected at the start")
        axes.axhline(loud, color=GREY, lw=0.9, ls=DASHES[1])
        axes.annotate(
            f"drowns the text {loud:g}", (0.01, loud), xycoords=("axes fraction", "data"),
            ha="left", va="bottom", fontsize=8, color=GREY,
        )  # fmt: skip
        log_axis(axes)
        axes.set_ylim(top=max(axes.get_ylim()[1], 1.6 * loud))
        _depth(axes, list(found))
        axes.set_ylabel("share of the hidden state")
        legend(axes)

    rows = [(_place(layer), before.get(layer), *values) for layer, values in found.items()]
    table = Table(("at", "median before training", "5%", "median contribution", "95%"), rows)
    about = (
        f"What the audio adds, relative to the hidden state: {_told(found)}. "
        f"Expected at the start: {expected[0]:g} to {expected[1]:g}."
    )
    return picture("contribution", "Contribution of the audio", about, table, draw)


def _spread(facts: Facts, component: str, kind: str) -> dict[int, tuple[float, float, float]]:
    names = [f"{kind}_p5", f"{kind}_median", f"{kind}_p95"]
    sides = []
    for name in names:
        found = facts.layers("magnitude", component, name)
        first = facts.value("magnitude", component, name)
        sides.append(({} if first is None else {INPUT: first}) | found)
    low, middle, high = sides
    return {
        layer: (low.get(layer, value), value, high.get(layer, value))
        for layer, value in middle.items()
    }  # fmt: skip


def _band(axes: Axes, found: Spread, colour: str, marker: str, name: str) -> None:
    """A line with a band; the input stands apart from the layers, so no line leads there."""
    for part, label in ((INPUT,), ""), (tuple(k for k in found if k != INPUT), name):
        layers = [layer for layer in part if layer in found]
        if layers:
            low, middle, high = drawable([found[k] for k in layers], positive=True).T
            axes.plot(layers, middle, color=colour, marker=marker, label=label)
            if len(layers) > 1:
                axes.fill_between(layers, low, high, color=colour, alpha=0.18, lw=0)
            else:
                axes.vlines(layers, low, high, color=colour, alpha=0.4, lw=4)


def _depth(axes: Axes, layers: list[int]) -> None:
    whole_numbers(axes)
    axes.set_xlabel("decoder layer (-1: its input)" if INPUT in layers else "decoder layer")
    if layers:
        axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)


def _place(layer: int) -> str:
    return "input" if layer == INPUT else f"layer {layer}"


def _told(found: Spread) -> str:
    parts = [f"{_place(layer)} {number(values[1])}" for layer, values in found.items()]
    return ", ".join(parts[:12]) + (
        f" and {len(parts) - 12} more layers" if len(parts) > 12 else ""
    )
