"""Percentile bootstrap over clips: how far a mean would move had other clips been drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import MetricError

# Resamples are drawn in blocks of about this many indices, so that 50,000 clips do not need 400 MB.
_BLOCK = 2**21


@dataclass(frozen=True)
class Difference:
    """A paired difference of means, first minus second, with its bootstrap interval."""

    mean: float
    """Mean of a - b over clips, in the unit of the values."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    significant: bool = field(init=False)
    """Whether a is better than b: the whole interval lies above zero."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "significant", self.low > 0)


def bootstrap_interval(
    values: ArrayLike, n_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval (low, high) of the mean of `values` [n] by the percentile bootstrap (Efron 1979).

    Raises:
        MetricError: fewer than two values, not one-dimensional, NaN or infinite, or an impossible
            `n_resamples` or `level`.
    """
    checked = _checked(values, "values")
    if n_resamples < 1:
        raise MetricError(f"n_resamples must be at least 1, got {n_resamples}")
    if not 0 < level < 1:
        raise MetricError(f"level must lie strictly between 0 and 1, got {level}")
    rng = np.random.default_rng(seed)
    n = len(checked)
    means = np.empty(n_resamples)
    rows = max(1, _BLOCK // n)
    for start in range(0, n_resamples, rows):
        block = means[start : start + rows]
        block[:] = checked[rng.integers(0, n, size=(len(block), n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    a: ArrayLike, b: ArrayLike, n_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Mean of a - b over the same clips, [n] each in the same order, with its bootstrap interval.

    Pairing takes out the clips' own difficulty, which is most of the spread of per-clip CIDEr.

    Raises:
        MetricError: different lengths, or anything `bootstrap_interval` refuses.
    """
    first, second = _checked(a, "a"), _checked(b, "b")
    if len(first) != len(second):
        raise MetricError(
            "a paired difference needs the same clips on both sides, "
            f"got {len(first)} and {len(second)} values"
        )
    gap = first - second
    low, high = bootstrap_interval(gap, n_resamples, seed, level)
    return Difference(mean=float(gap.mean()), low=low, high=high)


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise MetricError(
            f"{name} must be a list of at least two numbers, one per clip; got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        first = int(np.flatnonzero(~np.isfinite(array))[0])
        raise MetricError(f"{name}[{first}] is {array[first]}; every clip needs a finite score")
    return array
