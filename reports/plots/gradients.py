"""Where gradients flow: components by step as a heat map, and each component at the last look."""

import math
from collections.abc import Iterable

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from probes.ledger import State
from probes.record import Record
from reports.plots.curves import column
from reports.plots.palette import BLUE, GREY, INK, RED
from reports.plots.plot import Plot, Table, drawable, label, legend, log_axis, picture
from reports.printed import number
from reports.run import Run

MOST_COLUMNS = 40
MOST_ROWS = 40
FEWEST_LOOKS = 4
"""Looks of the probe that are worth rows of their own; the last one is also drawn by itself."""
_ORDER = ("projector", "adapter", "fusion", "gate")
Points = dict[str, list[tuple[float, float]]]
"""Name of a row to its pairs of step and norm."""
Floats = NDArray[np.float64]


def heat(run: Run) -> Plot | None:
    """Gradient norm by component and step; None when no step was recorded."""
    points = _points(run)
    edges = _edges(points)
    if not points or edges is None:
        return None
    names = list(points)[:MOST_ROWS]
    cells = np.array([_binned(points[name], edges) for name in names])
    ends = [f"{edge:,.0f}" for edge in edges[1:]]

    def draw(axes: Axes) -> None:
        shown = drawable(cells, positive=True)
        _heat(axes, shown, [label(name) for name in names], ends)
        _mark(axes, cells == 0, "0", "exactly zero")
        _mark(axes, np.isinf(cells), "x", "not finite")
        axes.set_xlabel("up to optimizer step")
        legend(axes)

    first, last = (cells[:, column] for column in (0, -1))
    told = [f"{n} {number(a)} to {number(b)}" for n, a, b in zip(names, first, last, strict=True)]
    about = f"Largest gradient norm in {len(ends)} stretches of training: {'; '.join(told)}."
    rows = [
        (f"up to step {end}", *(None if math.isnan(v) else v for v in cells[:, i]))
        for i, end in enumerate(ends)
    ]
    height = 1.25 + 0.26 * len(names)
    table = Table(("", *map(label, names)), rows)
    return picture("heat", "Gradient norm by component and step", about, table, draw, height)


def components(run: Run) -> Plot | None:
    """Gradient norm of every component at the last look; None when it was not measured."""
    norms = {(r.component, r.layer): r for r in _components(run.facts.all("gradflow", "norm"))}
    states = {(r.component, r.layer): r.value for r in run.facts.all("gradflow", "state")}
    if not norms:
        return None
    found = sorted(norms.values(), key=_rank)[:MOST_ROWS]
    names, places = [label(_name(r)) for r in found], np.arange(len(found))
    values = np.array([r.value for r in found])
    step = run.facts.step("gradflow")

    def draw(axes: Axes) -> None:
        usable = np.isfinite(drawable(values, positive=True))
        foot = values[usable].min() / 3 if usable.any() else 1.0
        if usable.any():
            axes.hlines(places[usable], foot, values[usable], color=GREY, lw=0.8)
            axes.plot(values[usable], places[usable], color=BLUE, marker="o", ls="", label="norm")
        if not usable.all():
            rest = places[~usable]
            axes.plot(
                np.full(len(rest), foot), rest, color=RED, marker="X", ls="",
                label="zero or not finite",
            )  # fmt: skip
        log_axis(axes, "x")
        axes.set_yticks(places, names)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"L2 of the gradient at step {step:,}")
        legend(axes)

    rows = [
        (name, r.value, _state(states.get((r.component, r.layer))))
        for name, r in zip(names, found, strict=True)
    ]
    told = ", ".join(f"{name} {number(value)}" for name, value, _ in rows)
    about = f"L2 of the mean gradient at step {step:,}: {told}."
    height = 1.1 + 0.24 * len(found)
    table = Table(("component", "norm", "state"), rows)
    return picture(
        "components", f"Gradient by component at step {step:,}", about, table, draw, height
    )


def _points(run: Run) -> Points:
    steps = column(run.steps, "step")
    names = sorted({k for row in run.steps for k in row if k.startswith("grad_norm/")}, key=_metric)
    found: Points = {}
    for name in names:
        pairs = np.stack([steps, column(run.steps, name)], axis=1)
        label = name.partition("/")[2]
        present = np.array([name in row for row in run.steps])
        found["all" if label == "total" else label] = [
            (float(a), float(b)) for a, b in pairs[present & np.isfinite(steps)]
        ]
    records = sorted(_components(r for r in run.probed if r.probe == "gradflow"), key=_rank)
    if len({r.step for r in records}) >= FEWEST_LOOKS:
        for r in records:
            if r.statistic == "norm":
                found.setdefault(f"{_name(r)} (probe)", []).append((float(r.step), r.value))
    return {name: pairs for name, pairs in found.items() if pairs}


def _edges(points: Points) -> Floats | None:
    """Ends of the stretches of training that are the columns; the probe's looks, if several."""
    steps = [step for pairs in points.values() for step, _ in pairs]
    if not steps:
        return None
    looked = sorted({s for name, p in points.items() if name.endswith("(probe)") for s, _ in p})
    last = max(steps)
    if FEWEST_LOOKS <= len(looked) <= MOST_COLUMNS:
        inner = np.array(looked if looked[-1] >= last else [*looked, last])
        return np.concatenate([[-np.inf], inner])
    columns = int(min(MOST_COLUMNS, max(1.0, last - min(steps) + 1)))
    return np.round(np.linspace(min(steps) - 1, last, columns + 1))


def _binned(pairs: list[tuple[float, float]], edges: Floats) -> Floats:
    """Largest norm of each stretch; infinity if one is not finite, NaN where nothing is known."""
    steps, values = np.array(pairs).T
    values = np.where(np.isfinite(values), values, np.inf)
    found = np.full(len(edges) - 1, -np.inf)
    place = np.clip(np.searchsorted(edges, steps, side="left") - 1, 0, len(found) - 1)
    np.maximum.at(found, place, values)
    return np.where(found == -np.inf, np.nan, found)


def _heat(axes: Axes, cells: Floats, names: list[str], ends: list[str]) -> None:
    finite = cells[np.isfinite(cells)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.1, 1.0)
    norm = LogNorm(low / 1.05, high * 1.05)
    every = max(1, math.ceil(len(ends) / 8))
    sns.heatmap(
        cells, ax=axes, cmap="cividis", norm=norm, mask=~np.isfinite(cells), cbar=False,
        xticklabels=False, yticklabels=False,
    )  # fmt: skip
    axes.grid(visible=False)
    axes.set_xticks(np.arange(len(ends))[::every] + 0.5, ends[::every], rotation=0)
    axes.set_yticks(np.arange(len(names)) + 0.5, names, rotation=0)
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(axes.collections[0], ax=axes, pad=0.02, label="L2")
    assert bar.solids is not None
    bar.solids.set_rasterized(False)
    bar.solids.set_edgecolor("face")
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _mark(axes: Axes, where: NDArray[np.bool_], sign: str, name: str) -> None:
    rows, columns = np.nonzero(where)
    if len(rows):
        axes.plot(
            columns + 0.5, rows + 0.5, ls="", color=INK if sign == "0" else RED,
            marker="o" if sign == "0" else "X", markerfacecolor="none" if sign == "0" else RED,
            label=name,
        )  # fmt: skip


def _components(records: Iterable[Record]) -> list[Record]:
    """Those of whole components that have something to train; not of single parameters."""
    return [r for r in records if not r.detail and r.statistic == "norm" and r.component != "model"]


def _rank(record: Record) -> tuple[int, str, int]:
    known = _ORDER.index(record.component) if record.component in _ORDER else len(_ORDER)
    return known, record.component, -1 if record.layer is None else record.layer


def _metric(name: str) -> tuple[bool, int, str]:
    label = name.partition("/")[2]
    return label != "total", _ORDER.index(label) if label in _ORDER else len(_ORDER), label


def _name(record: Record) -> str:
    return record.component if record.layer is None else f"{record.component} @ {record.layer}"


def _state(value: float | None) -> str:
    names = {
        State.NONE: "none",
        State.ZERO: "zero",
        State.FINITE: "finite",
        State.NONFINITE: "not finite",
    }
    return next((name for state, name in names.items() if value == state), "-")
