"""A curve in one line of text."""

import math
from collections.abc import Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"
_NOT_A_NUMBER = "!"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """At most ``width`` bars from the lowest to the highest value, each the mean of its share.

    A share with a value that is not finite is a ``!``. Empty when there are no values.
    """
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    shares = [values[a:b] for a, b in pairwise(edges)]
    means = [sum(share) / len(share) for share in shares]
    finite = [m for m in means if math.isfinite(m)]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    return "".join(_bar((m - low) / span if span else 0.5) for m in means)


def _bar(height: float) -> str:
    if not math.isfinite(height):
        return _NOT_A_NUMBER
    return _BARS[min(int(height * len(_BARS)), len(_BARS) - 1)]
