"""Statistics of the projector's output over many clips: saturated, dead or collapsed units."""

import torch
from torch import Tensor

from probes.record import Rows
from probes.statistics import TokenPool, report_pools

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


def as_tokens(output: Tensor) -> Tensor:
    """[B, N, H] of what a projector returned; [B, W] is read as one token per clip."""
    return output[:, None] if output.dim() == 2 else output.flatten(1, -2)


class SignalTokens:
    """Collects the tokens [B, N, H] of the projector; their norms are for others to pool."""

    def __init__(self) -> None:
        self.pool = TokenPool()
        """Norms of the tokens."""
        self.calls = 0
        self._elements = 0
        self._saturated: list[Tensor] = []
        self._clips = MeanCosine()
        self._within: list[Tensor] = []
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._comparable = True
        self._rows = 0

    def add(self, tokens: Tensor, scale: float | None) -> None:
        """Look at the tokens of one batch.

        Args:
            tokens: [B, N, H].
            scale: largest possible absolute value of an element, if known.
        """
        self.calls += 1
        self._rows += tokens.shape[0]
        if scale is not None:
            self._elements += tokens.numel()
            self._saturated.append((tokens.abs() > SATURATED * scale).sum())
        self._within.append(_cosines_within(tokens.double()))
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
        report_pools(rows, "projector", {None: self.pool})
        if self._elements:
            share = sum(map(int, self._saturated)) / self._elements
            rows.add("projector", "saturated", share, "share")
        if self._within:
            cosine, count = torch.cat(self._within, dim=1).cpu()
            if (count > 1).any():
                within = cosine[count > 1].mean()
                rows.add("projector", "cosine_between_tokens", within, "cosine")
        if not self._comparable or self._rows < 2 or self._low is None or self._high is None:
            return
        size = self._low.abs().maximum(self._high.abs())
        dead = (self._high - self._low) <= _SAME * size
        rows.add("projector", "dead_units", dead.double().mean().item(), "share")
        if self._clips.value is not None:
            rows.add("projector", "cosine_between_clips", self._clips.value, "cosine")


def _cosines_within(tokens: Tensor) -> Tensor:
    """[2, B] mean cosine over all pairs of each clip's tokens [B, N, H], and how many have one.

    The mean means nothing where fewer than two do: a zero vector has no direction.
    """
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    units = torch.where(length != 0, tokens / length, 0)
    count = (length != 0).sum((-2, -1)).double()
    squared = units.sum(-2).square().sum(-1)
    return torch.stack(((squared - count) / (count * (count - 1)), count))
