"""Norms of hidden states: two numbers per token, from which every cheap statistic follows."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating]
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
    """[B, T] L2 norm of each token, float32 (float64 where float32 would not do)."""
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
        with np.errstate(invalid="ignore"):  # NaN compares as no sink
            level = self.l2 * (SINK_RATIO / max(self.width, 1) ** 0.5)
            found: Mask = (self.peak >= level) & (level > 0) & (level < np.inf)
        return found

    @property
    def ordinary(self) -> Mask:
        """[B, T] finite tokens that are not sinks."""
        return self.finite & ~self.sinks


class PassNorms:
    """Norms of hidden states at many places of one forward pass.

    They stay on their device until :meth:`read` brings all of them in one transfer; nothing of the
    size of hidden states is allocated.

    Args:
        wide: accumulate in float64. Float32, the default, loses tokens whose squares it cannot
            hold; :meth:`read` then says so.
    """

    def __init__(self, *, wide: bool = False) -> None:
        self.wide = wide
        self._shapes: list[torch.Size] = []
        self._norms: list[Tensor] = []
        self._high: list[Tensor] = []
        self._low: list[Tensor] = []

    def add(self, hidden: Tensor) -> int:
        """Take the norms of hidden states [..., H]; their number in what :meth:`read` returns."""
        wide = self.wide or hidden.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        self._norms.append(torch.linalg.vector_norm(hidden, dim=-1, dtype=dtype))
        # both ends are twenty times as fast as the norm of order infinity, which is not vectorised
        self._high.append(hidden.amax(-1))
        self._low.append(hidden.amin(-1))
        self._shapes.append(hidden.shape)
        return len(self._shapes) - 1

    def read(self) -> list[TokenNorms] | None:
        """The norms of all that was added; None when they must be taken again, ``wide``."""
        if not self._shapes:
            return []
        l2, high, low = _gathered([*self._norms, *self._high, *self._low]).reshape(3, -1)
        peak = np.maximum(high, np.negative(low, out=low), out=high)
        if not self.wide and _lost(peak):
            return None
        found, start = [], 0
        for shape in self._shapes:
            tokens, width = shape[:-1], shape[-1]
            part = slice(start, start + tokens.numel())
            found.append(TokenNorms(l2[part].reshape(tokens), peak[part].reshape(tokens), width))
            start = part.stop
        return found


def _gathered(parts: list[Tensor]) -> Floats:
    """All elements in a row, in the widest of their types, by one transfer from each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for part in parts:
        by_device.setdefault(part.device, []).append(part.reshape(-1))
    flat = {device: torch.cat(group).cpu() for device, group in by_device.items()}
    if len(flat) == 1:
        return np.asarray(next(iter(flat.values())).numpy())
    rows = {d: iter(x.split([len(p) for p in by_device[d]])) for d, x in flat.items()}
    return np.asarray(torch.cat([next(rows[part.device]) for part in parts]).numpy())


def _lost(peak: Floats) -> bool:
    """Whether the squares of a token vanish in float32, or overflow."""
    small, large = (peak > 0) & (peak < _SAFE[0]), (peak > _SAFE[1]) & (peak < np.inf)
    return bool(small.any() or large.any())


def token_norms(hidden: Tensor) -> TokenNorms:
    """The norms of hidden states [..., H], whatever their size, at once."""
    for wide in (False, True):
        norms = PassNorms(wide=wide)
        norms.add(hidden)
        found = norms.read()
        if found is not None:
            break
    assert found is not None
    l2, peak, width = found[0]
    return TokenNorms(l2.astype(np.float64), peak.astype(np.float64), width)


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
