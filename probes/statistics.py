"""The cheap statistics of tokens: percentiles, means with and without attention sinks.

RMS per element, largest element and L2 per token are different things; each is named. Attention
sinks (tokens with one huge element) are kept apart, because they would rule every mean.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from probes.norms import Floats, Mask, TokenNorms
from probes.record import Rows

Indices = NDArray[np.intp]
Counts = NDArray[np.int64]
PERCENTILES = {"p5": 5, "median": 50, "p95": 95}


class TokenPool:
    """Norms of the tokens of one kind at one place, pooled over batches."""

    def __init__(self) -> None:
        self.width = 0
        self.excluded = 0
        self._parts: list[tuple[Floats, Floats]] = []

    def add(self, norms: TokenNorms, chosen: Indices | None = None) -> None:
        """Add the tokens of a batch at the flat indices ``chosen``; None for all."""
        self.width = norms.width
        l2, peak = norms.l2.reshape(-1), norms.peak.reshape(-1)
        if chosen is not None:
            self.excluded += l2.size - chosen.size
            l2, peak = l2[chosen], peak[chosen]
        self._parts.append((l2, peak))

    def norms(self) -> TokenNorms:
        """All tokens added so far, [n]."""
        if len(self._parts) != 1:
            pairs = [(np.empty(0, np.float32),) * 2, *self._parts]
            l2, peak = (np.concatenate(side) for side in zip(*pairs, strict=True))
            self._parts = [(l2, peak)]
        return TokenNorms(*self._parts[0], self.width)

    @property
    def l2_median(self) -> float:
        """Median L2 of the ordinary tokens; NaN when there are none."""
        norms = self.norms()
        return median(norms.l2[norms.ordinary])


def stacked(pools: Sequence[TokenPool]) -> TokenNorms:
    """[P, n] norms of P pools that hold as many tokens of one width."""
    norms = [pool.norms() for pool in pools]
    l2, peak = np.stack([n.l2 for n in norms]), np.stack([n.peak for n in norms])
    return TokenNorms(l2, peak, pools[0].width)


class Summary(NamedTuple):
    """Statistics of the tokens [P, n] of P places, each [P]; NaN where no token is ordinary."""

    ordinary: Counts
    """Finite tokens that are not sinks."""
    sinks: Counts
    """Attention sinks."""
    nonfinite: Counts
    """Tokens with NaN or infinity."""
    l2: tuple[Floats, ...]
    """Percentiles of the ordinary tokens' L2, as in :data:`PERCENTILES`."""
    l2_mean: Floats
    """Mean L2 of the ordinary tokens."""
    l2_mean_with_sinks: Floats
    """Mean L2 of all finite tokens."""
    sink_l2_median: Floats
    """Median L2 of the sinks; NaN where there is none."""
    max_abs: Floats
    """Largest absolute element of the ordinary tokens; 0 where there is none."""


def summary(norms: TokenNorms) -> Summary:
    """The statistics of tokens [P, n] at P places, all together.

    Place by place, NumPy's calls would take longer than the norms themselves.
    """
    finite, sinks = norms.finite, norms.sinks
    ordinary = finite & ~sinks
    count = ordinary.sum(1)
    # sorted, NaN comes last: the first ``count`` of each row are the ordinary ones
    ordered = np.sort(_only(norms.l2, ordinary, np.nan), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _only(norms.l2, ordinary, 0).sum(1, dtype=np.float64) / count
        with_sinks = _only(norms.l2, finite, 0).sum(1, dtype=np.float64) / finite.sum(1)
    return Summary(
        count,
        sinks.sum(1),
        finite.shape[1] - finite.sum(1),
        tuple(_percentiles(ordered, count, percent) for percent in PERCENTILES.values()),
        mean,
        with_sinks,
        np.array([median(row[mask]) for row, mask in zip(norms.l2, sinks, strict=True)]),
        _only(norms.peak, ordinary, 0).max(1, initial=0),
    )


def _only(values: Floats, chosen: Mask, otherwise: float) -> Floats:
    """``values`` with all that is not chosen replaced."""
    return values if chosen.all() else np.where(chosen, values, values.dtype.type(otherwise))


def _percentiles(ordered: Floats, count: Counts, percent: float) -> Floats:
    """[P] percentiles of the first ``count`` of each row of ascending values [P, n]."""
    if not ordered.shape[1]:
        return np.full(len(ordered), np.nan)
    last = np.maximum(count, 1) - 1
    place = percent / 100 * last
    below = place.astype(int)
    row = np.arange(len(ordered))
    low = ordered[row, below].astype(np.float64)
    high = ordered[row, np.minimum(below + 1, last)]
    return np.asarray(low + (place - below) * (high - low))


def report_pools(rows: Rows, component: str, pools: Mapping[int | None, TokenPool]) -> None:
    """Add the statistics of each layer's tokens: counts always, norms where one is ordinary."""
    alike: dict[tuple[int, int], list[int | None]] = {}
    for layer, pool in pools.items():
        alike.setdefault((pool.norms().l2.size, pool.width), []).append(layer)
    found: dict[int | None, tuple[Summary, int]] = {}
    for layers in alike.values():
        together = summary(stacked([pools[layer] for layer in layers]))
        found |= {layer: (together, place) for place, layer in enumerate(layers)}
    for layer, pool in pools.items():
        _report(rows, component, layer, pool, *found[layer])


def _report(
    rows: Rows, component: str, layer: int | None, pool: TokenPool, found: Summary, place: int
) -> None:
    def add(statistic: str, value: float, unit: str) -> None:
        rows.add(component, statistic, value, unit, layer)

    add("tokens", pool.norms().l2.size, "tokens")
    add("excluded", pool.excluded, "tokens")
    add("sinks", found.sinks[place], "tokens")
    add("nonfinite", found.nonfinite[place], "tokens")
    if found.sinks[place]:
        add("sink_l2_median", found.sink_l2_median[place], "L2/token")
    if not found.ordinary[place]:
        return
    l2 = {name: values[place] for name, values in zip(PERCENTILES, found.l2, strict=True)}
    for name, value in l2.items():
        add(f"l2_{name}", value, "L2/token")
    add("rms_median", l2["median"] / pool.width**0.5, "RMS/element")
    add("max_abs", found.max_abs[place], "amplitude")
    mean, with_sinks = found.l2_mean[place], found.l2_mean_with_sinks[place]
    add("l2_mean", mean, "L2/token")
    add("l2_mean_with_sinks", with_sinks, "L2/token")
    if mean > 0:
        add("sink_inflation", with_sinks / mean, "ratio")


def median(values: Floats) -> float:
    """The median; NaN when there are no values or one of them is NaN."""
    return percentile(np.sort(values), 50)


def percentile(ordered: Floats, percent: float) -> float:
    """A percentile of ascending values, between two of them in proportion, as NumPy's are.

    NaN when there are no values or one of them is NaN (which sorts last).
    """
    if not ordered.size or np.isnan(ordered[-1]):
        return float("nan")
    place = percent / 100 * (ordered.size - 1)
    below = int(place)
    low, share = float(ordered[below]), place - below
    return low if share == 0 else low + share * (float(ordered[below + 1]) - low)
