"""Numbers from files made usable, and numbers made readable."""

import math


def as_float(value: object) -> float:
    """A number from a file as a float; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def number(value: object, digits: int = 3) -> str:
    """A number as a reader wants it: a dash for None, words for what is not finite; text as is."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) and abs(value) >= 10**300:
        return f"{'-' if value < 0 else ''}a number of {len(str(abs(value)))} digits"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}infinity"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"
