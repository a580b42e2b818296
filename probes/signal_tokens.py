"""Statistics of the projector's output over many clips: saturated, dead or collapsed units."""

import torch
from torch import Tensor

from probes.record import Rows
from probes.statistics import TokenPool, token_norms

SATURATED = 0.99
"""An element is saturated when it exceeds this share of the projector's scale."""
_SAME = 1e-6
"""A unit is dead when its values differ by no more than this share of their size."""


class MeanCosine:
    """Mean cosine over all pairs of vectors, from running sums: the vectors are not kept."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        """Add [n, W] vectors; zero vectors have no direction and are left out."""
        vectors = vectors.double()
        length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        units = (vectors / length)[(length != 0).squeeze(-1)]
        total = units.sum(0)
        self.count += units.shape[0]
        self._sum = total if self._sum is None else self._sum + total

    @property
    def value(self) -> float | None:
        """The mean; None for fewer than two vectors."""
        if self.count < 2 or self._sum is None:
            return None
        squared = float(self._sum @ self._sum)
        return (squared - self.count) / (self.count * (self.count - 1))


class SignalTokens:
    """Collects the projector's outputs [B, N, H] (or [B, W], read as one token per clip)."""

    def __init__(self) -> None:
        self.pool = TokenPool()
        self.calls = 0
        self._elements = self._saturated = 0
        self._clips = MeanCosine()
        self._within: list[float] = []
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._comparable = True
        self._rows = 0

    def add(self, output: Tensor, scale: float | None) -> None:
        """Look at one output.

        Args:
            output: what the projector returned.
            scale: largest possible absolute value of an element, if known.
        """
        tokens = output[:, None] if output.dim() == 2 else output.flatten(1, -2)
        self.calls += 1
        self._rows += tokens.shape[0]
        self.pool.add(token_norms(tokens))
        if scale is not None:
            self._elements += tokens.numel()
            self._saturated += int((tokens.abs() > SATURATED * scale).sum())
        for clip in tokens:
            cosine = MeanCosine()
            cosine.add(clip)
            if cosine.value is not None:
                self._within.append(cosine.value)
        self._compare(tokens)

    def _compare(self, tokens: Tensor) -> None:
        """Compare the clips unit by unit; only possible while all have as many tokens."""
        low, high = tokens.amin(0).float(), tokens.amax(0).float()
        if self._low is None or self._high is None:
            self._low, self._high = low, high
        elif self._low.shape == low.shape:
            self._low, self._high = self._low.minimum(low), self._high.maximum(high)
        else:
            self._comparable = False
        if self._comparable:
            self._clips.add(tokens.flatten(1))

    def report(self, rows: Rows) -> None:
        """Add the statistics of component ``projector``."""
        self.pool.report(rows, "projector", None)
        if self._elements:
            share = self._saturated / self._elements
            rows.add("projector", "saturated", share, "share")
        if self._within:
            within = sum(self._within) / len(self._within)
            rows.add("projector", "cosine_between_tokens", within, "cosine")
        if not self._comparable or self._rows < 2 or self._low is None or self._high is None:
            return
        size = self._low.abs().maximum(self._high.abs())
        dead = (self._high - self._low) <= _SAME * size
        rows.add("projector", "dead_units", dead.double().mean().item(), "share")
        if self._clips.value is not None:
            rows.add("projector", "cosine_between_clips", self._clips.value, "cosine")
