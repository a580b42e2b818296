"""The cheap statistics of hidden states: two norms per token, and everything else from those.

RMS per element, largest element and L2 per token are different things; each is named. Attention
sinks (tokens with one huge element) are kept apart, because they would rule every mean.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.record import Rows

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SINK_RATIO = 20.0
"""A token is a sink when max|h| / RMS reaches this; impossible below hidden size 400."""
_SAFE = (1e-15, 1e15)
"""Peaks within which float32 squares neither vanish nor overflow."""
_RELIABLE = (1e-10, 1e30)
"""Norms of which float32 squares have lost nothing: what vanished is too small to count, and what
overflowed is infinite."""


class TokenNorms(NamedTuple):
    """What is kept of hidden states [B, T, H]."""

    l2: Floats
    """[B, T] L2 norm of each token."""
    peak: Floats
    """[B, T] largest absolute element of each token."""
    width: int
    """H."""

    @property
    def finite(self) -> Mask:
        """[B, T] tokens without NaN or infinity."""
        return np.isfinite(self.l2)

    @property
    def sinks(self) -> Mask:
        """[B, T] attention sinks."""
        with np.errstate(invalid="ignore"):
            found: Mask = self.peak >= SINK_RATIO * self.l2 / np.sqrt(self.width)
        return found & (self.l2 > 0) & self.finite

    @property
    def ordinary(self) -> Mask:
        """[B, T] finite tokens that are not sinks."""
        return self.finite & ~self.sinks


def token_norms(hidden: Tensor) -> TokenNorms:
    """The norms of hidden states [..., H], accumulated in float32 (float64 for float64).

    Nothing of the size of ``hidden`` is allocated, but for tokens whose squares would leave the
    range of float32. One transfer brings both norms from an accelerator.
    """
    accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(hidden, dim=-1, dtype=accumulate)
    # twenty times as fast as the norm of order infinity, which is not vectorised
    largest = torch.maximum(hidden.amax(-1), -hidden.amin(-1)).to(accumulate)
    l2, peak = torch.stack((norm, largest)).cpu().double().numpy()
    extreme = ((peak > 0) & (peak < _SAFE[0])) | ((peak > _SAFE[1]) & (peak < np.inf))
    if extreme.any():
        tokens = hidden[torch.from_numpy(extreme).to(hidden.device)].double()
        l2[extreme] = torch.linalg.vector_norm(tokens, dim=-1).cpu().numpy()
    return TokenNorms(l2, peak, hidden.shape[-1])


def precise_norm(tensor: Tensor) -> float:
    """L2 norm of a tensor of any size: float32 within rows, float64 over the rows.

    As fast as a float32 norm. Rounding errors stay those of one row (at most about 1e-6, of random
    rows 1e-10), where float32 throughout is off by 1e-3 for 28 million elements. Exactly 0 only
    for a tensor of zeros.
    """
    tensor = tensor.detach()
    if 0 < tensor.numel() != tensor.shape[-1:].numel() and tensor.dtype != torch.float64:
        rows = tensor.reshape(-1, tensor.shape[-1])
        norm = float(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).double().norm())
        if _RELIABLE[0] <= norm < _RELIABLE[1]:
            return norm
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


class TokenPool:
    """Norms of the tokens of one kind at one place, pooled over batches."""

    def __init__(self) -> None:
        self.width = 0
        self.excluded = 0
        self._parts: list[tuple[Floats, Floats]] = []

    def add(self, norms: TokenNorms, mask: Mask | None = None) -> None:
        """Add the tokens of a batch that are True in ``mask`` [B, T]; None for all."""
        chosen = np.ones_like(norms.l2, dtype=bool) if mask is None else mask
        self.width = norms.width
        self.excluded += int((~chosen).sum())
        self._parts.append((norms.l2[chosen], norms.peak[chosen]))

    def norms(self) -> TokenNorms:
        """All tokens added so far, [n]."""
        l2 = np.concatenate([p[0] for p in self._parts] or [np.empty(0)])
        peak = np.concatenate([p[1] for p in self._parts] or [np.empty(0)])
        return TokenNorms(l2, peak, self.width)

    @property
    def l2_median(self) -> float:
        """Median L2 of the ordinary tokens; NaN when there are none."""
        norms = self.norms()
        return median(norms.l2[norms.ordinary])

    def report(self, rows: Rows, component: str, layer: int | None) -> None:
        """Add the statistics: counts always, norms when there is an ordinary token."""
        norms = self.norms()
        finite, sinks = norms.finite, norms.sinks
        ordinary = finite & ~sinks

        def add(statistic: str, value: float, unit: str) -> None:
            rows.add(component, statistic, value, unit, layer)

        add("tokens", norms.l2.size, "tokens")
        add("excluded", self.excluded, "tokens")
        add("sinks", sinks.sum(), "tokens")
        add("nonfinite", (~finite).sum(), "tokens")
        if sinks.any():
            add("sink_l2_median", median(norms.l2[sinks]), "L2/token")
        if not ordinary.any():
            return
        l2 = np.sort(norms.l2[ordinary])
        for name, percent in (("p5", 5), ("median", 50), ("p95", 95)):
            add(f"l2_{name}", percentile(l2, percent), "L2/token")
        add("rms_median", percentile(l2, 50) / self.width**0.5, "RMS/element")
        add("max_abs", norms.peak[ordinary].max(), "amplitude")
        mean = l2.mean()
        add("l2_mean", mean, "L2/token")
        naive = norms.l2[finite].mean()
        add("l2_mean_with_sinks", naive, "L2/token")
        if mean > 0:
            add("sink_inflation", naive / mean, "ratio")


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
