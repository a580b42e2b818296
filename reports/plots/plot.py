"""A plot: a picture, what it shows in words, and the table behind it; and the house style."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.plain import plain
from reports.plots.palette import FAINT, GREY, INK
from reports.plots.svg import to_svg
from reports.printed import number

WIDTH, HEIGHT = 6.0, 3.3
"""Inches; drawn this narrow, a plot's text is still readable on a phone."""
MOST_ROWS = 120
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
    """A logarithmic axis with plain numbers at its ticks."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def whole_numbers(axes: Axes) -> None:
    """Ticks at whole numbers only, with separators: steps."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def legend(axes: Axes, columns: int = 3) -> None:
    """A legend above the axes, when anything is named."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
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
