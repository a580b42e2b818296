"""A plot: a picture, what it shows in words, and the table behind it; and the house style."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from configs.plain_text import plain
from reports.plots.palette import FAINT, GREY, INK, RED
from reports.plots.svg import to_svg
from reports.plots.thin import Floats, thin
from reports.printed import number

WIDTH, HEIGHT = 6.0, 3.3
"""Inches; drawn this narrow, a plot's text is still readable on a phone."""
MOST_ROWS = 120
MOST_DRAWN = 1e30
"""Numbers beyond it (and on logarithmic axes below its inverse) stand in the table alone."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "svg.hashsalt": "safe-probe",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": "DejaVu Sans", "font.size": 9.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "axes.linewidth": 0.8,
    "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "legend.fontsize": 8.5, "legend.handlelength": 2.4,
    "lines.linewidth": 1.5, "lines.markersize": 4.5, "lines.solid_capstyle": "round",
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """One picture of the page."""

    key: str
    """Unique on the page; its ids begin with it."""
    title: str
    about: str
    """What it shows, in words with numbers: its text alternative."""
    svg: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The table behind it, as text."""


@dataclass(frozen=True)
class Table:
    """Numbers behind a plot."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's settings for our plots; the caller's come back."""
    known = mpl.rcParamsDefault.items()
    settings: Any = {k: v for k, v in known if not k.startswith("backend")} | _STYLE
    with mpl.rc_context(settings):
        yield


def picture(
    key: str, title: str, about: str, table: Table, draw: Callable[[Axes], None],
    height: float = HEIGHT,
) -> Plot:  # fmt: skip
    """Draw into fresh axes of the house style.

    Args:
        key: unique on the page.
        title: the plot's name.
        about: what it shows, in words with numbers.
        table: the numbers behind it.
        draw: draws into the axes.
        height: inches.
    """
    title, about = plain(title), plain(about)
    with house_style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        svg = to_svg(figure, key, title, about)
    return Plot(key, title, about, svg, table.columns, _rows(table.rows))


def log_axis(axes: Axes, which: str = "y") -> None:
    """Make an axis logarithmic, with plain numbers at its ticks, when there is anything above 0."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    if not np.isfinite(axis.get_minpos()):
        return
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axis.get_view_interval()
    narrow = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axis.set_minor_formatter(narrow if high < 30 * low else NullFormatter())


def feet(axes: Axes, places: Floats, name: str) -> None:
    """Red crosses at the foot of the picture for what has no place on its y axis."""
    if len(places):
        places = places[thin(places, 100)]
        axes.plot(
            places, np.zeros(len(places)), transform=axes.get_xaxis_transform(), color=RED, ls="",
            marker="X", markersize=6, clip_on=False, zorder=5, label=name,
        )  # fmt: skip


def drawable(values: ArrayLike, positive: bool = False) -> Floats:
    """``values`` with NaN for what cannot be drawn: not finite, astronomic, or not above 0.

    Args:
        values: any numbers.
        positive: whether they go onto a logarithmic axis.
    """
    numbers = np.asarray(values, dtype=float)
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(numbers) <= MOST_DRAWN)
        if positive:
            bad |= ~(numbers >= 1 / MOST_DRAWN)
    return np.where(bad, np.nan, numbers)


def arms(low: ArrayLike, middle: ArrayLike, high: ArrayLike) -> Floats:
    """Lengths of error bars, [2, n]; 0 where an end is unknown or on the wrong side."""
    ends = np.stack([drawable(middle) - drawable(low), drawable(high) - drawable(middle)])
    return np.clip(np.nan_to_num(ends), 0, None)


def whole_numbers(axes: Axes) -> None:
    """Ticks at whole numbers only, with separators: steps."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def legend(axes: Axes) -> None:
    """A legend above the axes, when anything is named; as many columns as its names have room."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = max(1, min(len(labels), 72 // (max(map(len, labels)) + 9)))
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns,
            borderaxespad=0.2, columnspacing=1.2,
        )  # fmt: skip


def label(name: object) -> str:
    """A name from a file, short enough to stand in a picture."""
    text = plain(name)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _rows(rows: Sequence[Sequence[object]]) -> tuple[tuple[str, ...], ...]:
    if len(rows) > MOST_ROWS:
        last = len(rows) - 1
        rows = [rows[round(i * last / (MOST_ROWS - 1))] for i in range(MOST_ROWS)]
    return tuple(tuple(number(cell) for cell in row) for row in rows)
