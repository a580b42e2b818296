"""Tables, bars and numbers for 80 columns."""

import math
from typing import Literal

from rich.table import Table

_BAR = 10


def bar(share: float, width: int = _BAR) -> str:
    """A bar for a share of 0 to 1; a missing or infinite one is empty."""
    if not math.isfinite(share):
        return ""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8]).strip()


def table(title: str, *columns: str) -> Table:
    """An empty table; the first column is text, the others are numbers, a ``<bar`` is text."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        left = index == 0 or column.startswith("<")
        side: Literal["left", "right"] = "left" if left else "right"
        made.add_column(column.removeprefix("<"), justify=side, no_wrap=index == 0)
    return made


def number(value: float | None, form: str = ".3g") -> str:
    """A number, or a dash for what was not measured; thousands are written out."""
    if value is None:
        return "-"
    if form in (".2g", ".3g") and 100 <= abs(value) < 1e6:
        return f"{float(format(value, form)):.0f}"
    return format(value, form)


def size(count: float | None) -> str:
    """Bytes with a unit."""
    if count is None:
        return "-"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"
