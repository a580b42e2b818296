"""What changed while the run was training: the loss, the score and the gates."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from reports.plots.palette import BLUE, DASHES, GREEN, GREY, MARKERS, RED, SERIES
from reports.plots.plot import (
    MOST_ROWS,
    Plot,
    Table,
    arms,
    drawable,
    feet,
    label,
    legend,
    picture,
    whole_numbers,
)
from reports.plots.thin import Floats, smooth, thin
from reports.printed import as_float, number
from reports.run import Row, Run

MOST_LINES = 48
Band = Sequence[tuple[float, float, float]]
"""Epoch, and the lowest and highest score expected there."""


def column(rows: Sequence[Row], name: str) -> Floats:
    """One field of all rows; NaN where it is missing or no number."""
    return np.array([as_float(row.get(name)) for row in rows], dtype=float)


def loss(run: Run) -> Plot | None:
    """Training loss by step; None when no step was recorded."""
    steps, values = column(run.steps, "step"), column(run.steps, "loss")
    usable = np.isfinite(steps)
    steps, values = steps[usable], values[usable]
    if not len(steps):
        return None
    finite = values[np.isfinite(values)]
    bad = steps[~np.isfinite(values)]
    kept, window = thin(values), max(1, len(values) // 50)
    mean = smooth(values, window)
    raw, middle = drawable(values[kept]), drawable(mean[kept])

    def draw(axes: Axes) -> None:
        marker = MARKERS[0] if len(kept) == 1 else ""
        if window == 1:
            axes.plot(steps[kept], raw, color=BLUE, marker=marker)
        else:
            axes.plot(steps[kept], raw, color=GREY, lw=0.6, alpha=0.75)
            axes.plot(steps[kept], middle, color=BLUE, label=f"mean of {window} steps")
        feet(axes, bad, "not finite")
        axes.set(xlabel="optimizer step", ylabel="loss (nats/token)")
        whole_numbers(axes)
        legend(axes)

    about = f"Training loss over {len(steps):,} steps"
    if len(finite):
        about += (
            f": {number(finite[0])} nats/token at first, {number(finite[-1])} at the end, "
            f"between {number(finite.min())} and {number(finite.max())}"
        )
    about += f"; {len(bad)} steps without a finite loss." if len(bad) else "."
    rows = [(steps[i], values[i], mean[i]) for i in thin(values, MOST_ROWS)]
    table = Table(("step", "loss (nats/token)", f"mean of {window} steps"), rows)
    return picture("loss", "Training loss", about, table, draw)


def cider(run: Run, band: Band, thresholds: Mapping[str, float]) -> Plot | None:
    """Score by epoch with what was expected; None when the run was never evaluated.

    Args:
        run: its evaluations and final score.
        band: the plan's expectation; between its epochs it is drawn as straight lines.
        thresholds: name to score, drawn as lines across; the highest first.
    """
    rows = _scores(run)
    if not rows:
        return None
    epochs, scores, lows, highs = (np.array(c) for c in list(zip(*rows, strict=True))[1:])
    end = max(float(run.config.optim.epochs), float(np.nanmax(epochs)), 1.0)

    def draw(axes: Axes) -> None:
        _expected(axes, band, end)
        for i, (name, value) in enumerate(thresholds.items()):
            axes.axhline(value, color=GREY, lw=0.9, ls=DASHES[1])
            axes.annotate(
                f"{name} {value:g}", (0.01, value), xycoords=("axes fraction", "data"),
                ha="left", va="top" if i else "bottom", fontsize=8, color=GREY,
            )  # fmt: skip
        during = [i for i, row in enumerate(rows) if row.what != "final"]
        final = [i for i, row in enumerate(rows) if row.what == "final"]
        for chosen, colour, marker, name in (
            (during, BLUE, "o", "during training"), (final, RED, "D", "final, with 95% interval"),
        ):  # fmt: skip
            if chosen:
                axes.errorbar(
                    epochs[chosen], drawable(scores[chosen]), color=colour, marker=marker,
                    label=name, yerr=arms(lows[chosen], scores[chosen], highs[chosen]),
                    capsize=2.5, elinewidth=0.9,
                )  # fmt: skip
        whole_numbers(axes)
        axes.set(xlabel="epoch", ylabel="CIDEr", xlim=(0, end * 1.04))
        axes.set_ylim(bottom=min(0.0, *axes.get_ylim()))
        legend(axes)

    shown = ", ".join(
        f"{number(s)} after epoch {number(e)}" for e, s in zip(epochs, scores, strict=True)
    )
    expected = ", ".join(f"{low:g} to {high:g} at epoch {epoch:g}" for epoch, low, high in band)
    about = f"CIDEr: {shown}. Expected: {expected}."
    table = Table(("measured", "epoch", "CIDEr", "95% from", "to"), rows)
    return picture("cider", "CIDEr by epoch", about, table, draw)


class _Score(NamedTuple):
    what: str
    epoch: float
    cider: float
    low: float
    high: float


def _scores(run: Run) -> list[_Score]:
    """Those during training, then the final one."""
    found = []
    for row in run.evaluations:
        epoch, score = as_float(row.get("epoch")), as_float(row.get("cider"))
        low, high = as_float(row.get("cider_low")), as_float(row.get("cider_high"))
        found.append(_Score("during training", epoch, score, low, high))
    names = ("cider", "cider_low", "cider_high")
    final = [as_float(run.facts.value("scores", "score", name)) for name in names]
    if np.isfinite(final[0]):
        found.append(_Score("final", run.epochs_done, *final))
    rows = [row for row in found if np.isfinite(row.epoch)]
    return [rows[i] for i in thin(np.array([row.cider for row in rows]), MOST_ROWS)]


def _expected(axes: Axes, band: Band, end: float) -> None:
    if not band:
        return
    epochs, low, high = (np.array(side, dtype=float) for side in zip(*band, strict=True))
    x = np.unique(np.clip(np.append(epochs, end), epochs[0], min(end, epochs[-1])))
    axes.fill_between(
        x, np.interp(x, epochs, low), np.interp(x, epochs, high),
        color=GREEN, alpha=0.22, lw=0, label="expected",
    )  # fmt: skip


def gates(run: Run) -> Plot | None:
    """Each fusion layer's gate by step; None when none was recorded."""
    names = sorted({k for row in run.steps for k in row if k.startswith("gate/")}, key=_layer)
    steps = column(run.steps, "step")
    lines = {f"layer {name[5:]}": (steps, column(run.steps, name)) for name in names}
    if not lines:
        lines = _probed_gates(run)
    lines = {k: (x, y) for k, (x, y) in lines.items() if np.isfinite(y).any()}
    if not lines:
        return None
    return series("gates", "Gates over time", ("optimizer step", "gate (factor)"), lines)


def _probed_gates(run: Run) -> dict[str, tuple[Floats, Floats]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for r in run.probed:
        if r.probe == "gates" and r.statistic == "effective" and r.layer is not None:
            found.setdefault(f"layer {r.layer}", []).append((float(r.step), r.value))
    return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in found.items()}


def _layer(name: str) -> tuple[float, str]:
    value = as_float(name.partition("/")[2])
    return (value if np.isfinite(value) else np.inf, name)


def series(
    key: str, title: str, labels: tuple[str, str], lines: Mapping[str, tuple[Floats, Floats]],
    smoothed: bool = False,
) -> Plot:  # fmt: skip
    """Some named curves in one picture.

    Args:
        key: unique on the page.
        title: the plot's name.
        labels: of the two axes.
        lines: name to x and y.
        smoothed: whether each curve is a running mean over a fiftieth of it.
    """
    if smoothed:
        lines = {k: (x, smooth(y, max(1, len(y) // 50))) for k, (x, y) in lines.items()}

    def draw(axes: Axes) -> None:
        for i, (name, (x, y)) in enumerate(list(lines.items())[:MOST_LINES]):
            kept, turn = thin(y), i // len(SERIES)
            axes.plot(
                x[kept], drawable(y[kept]), color=SERIES[i % len(SERIES)], label=label(name),
                marker=MARKERS[i % len(MARKERS)], markevery=max(1, len(kept) // 6),
                ls=DASHES[turn % len(DASHES)],
            )  # fmt: skip
        _at_least(axes, 0.1)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        whole_numbers(axes)
        legend(axes)

    ends = [
        f"{label(name)} from {number(y[np.isfinite(y)][0])} to {number(y[np.isfinite(y)][-1])}"
        for name, (_, y) in lines.items() if np.isfinite(y).any()
    ]  # fmt: skip
    each = max(2, MOST_ROWS // max(1, len(lines)))
    rows = [(label(k), x[i], y[i]) for k, (x, y) in lines.items() for i in thin(y, each)]
    return picture(key, title, f"{title}: {'; '.join(ends)}.", Table(("", *labels), rows), draw)


def _at_least(axes: Axes, share: float) -> None:
    """Widen the y axis so that it spans a share of its largest value: noise must not look big."""
    low, high = axes.get_ylim()
    missing = share * max(abs(low), abs(high)) - (high - low)
    if missing > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)
