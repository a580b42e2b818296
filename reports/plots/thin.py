"""Curves of any length drawn with a few hundred points, without losing a spike."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_POINTS = 500


def thin(values: Floats, most: int = MOST_POINTS) -> NDArray[np.int64]:
    """Indices of at most ``most`` values: smallest and largest of each stretch, and the ends.

    Values that are not finite count as the middle one, so that they displace no extreme.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    finite = values[np.isfinite(values)]
    filled = np.where(np.isfinite(values), values, np.median(finite) if len(finite) else 0.0)
    edges = np.linspace(0, count, (most - 2) // 2 + 1).astype(int)
    kept = {0, count - 1}
    for start, end in pairwise(edges):
        kept |= {start + int(filled[start:end].argmin()), start + int(filled[start:end].argmax())}
    return np.array(sorted(kept))


def smooth(values: Floats, window: int) -> Floats:
    """Running mean over ``window`` values of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    place = np.arange(len(values))
    start = np.maximum(0, place - window // 2)
    end = np.minimum(len(values), place + window // 2 + 1)
    with np.errstate(invalid="ignore"):
        return np.asarray((sums[end] - sums[start]) / (counts[end] - counts[start]))
