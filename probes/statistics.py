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
    range of float32.
    """
    accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    peak = torch.linalg.vector_norm(hidden, torch.inf, dim=-1).double()
    l2 = torch.linalg.vector_norm(hidden, dim=-1, dtype=accumulate).double()
    extreme = (peak > 0) & peak.isfinite() & ((peak < _SAFE[0]) | (peak > _SAFE[1]))
    if extreme.any():
        l2[extreme] = torch.linalg.vector_norm(hidden[extreme].double(), dim=-1)
    return TokenNorms(l2.cpu().numpy(), peak.cpu().numpy(), hidden.shape[-1])


def precise_norm(tensor: Tensor) -> float:
    """L2 norm of a tensor of any size: float32 within rows, float64 over the rows.

    As fast as a float32 norm. Rounding errors stay those of one row (at most about 1e-6, of random
    rows 1e-10), where float32 throughout is off by 1e-3 for 28 million elements. Exactly 0 only
    for a tensor of zeros.
    """
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return 0.0
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.reshape(1, -1)
    peak = float(torch.linalg.vector_norm(rows, torch.inf))
    if rows.shape[0] == 1 or rows.dtype == torch.float64 or not _SAFE[0] <= peak <= _SAFE[1]:
        return float(torch.linalg.vector_norm(rows, dtype=torch.float64))
    return float(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).double().norm())


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
        sinks, ordinary = norms.sinks, norms.ordinary

        def add(statistic: str, value: float, unit: str) -> None:
            rows.add(component, statistic, value, unit, layer)

        add("tokens", norms.l2.size, "tokens")
        add("excluded", self.excluded, "tokens")
        add("sinks", sinks.sum(), "tokens")
        add("nonfinite", (~norms.finite).sum(), "tokens")
        if sinks.any():
            add("sink_l2_median", median(norms.l2[sinks]), "L2/token")
        if not ordinary.any():
            return
        l2 = norms.l2[ordinary]
        for name, percent in (("p5", 5), ("median", 50), ("p95", 95)):
            add(f"l2_{name}", float(np.percentile(l2, percent)), "L2/token")
        add("rms_median", median(l2) / self.width**0.5, "RMS/element")
        add("max_abs", norms.peak[ordinary].max(), "amplitude")
        add("l2_mean", l2.mean(), "L2/token")
        naive = norms.l2[norms.finite].mean()
        add("l2_mean_with_sinks", naive, "L2/token")
        if l2.mean() > 0:
            add("sink_inflation", naive / l2.mean(), "ratio")


def median(values: Floats) -> float:
    """The median; NaN when there are no values or one of them is NaN."""
    return float(np.median(values)) if values.size else float("nan")
