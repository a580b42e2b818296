"""What replacing or silencing the signal does to the output, summed over batches."""

import numpy as np
from torch import Tensor

from probes.batch import IGNORED
from probes.logits import changes, divergence
from probes.norms import Floats
from probes.record import Rows

THIRDS = ("first", "middle", "last")


class Positions:
    """Where in its caption each of the M counted tokens of a batch stands.

    Args:
        labels: [B, T] as in ``Batch``.
    """

    def __init__(self, labels: Tensor) -> None:
        supervised = (labels[:, 1:] != IGNORED).cpu().numpy()
        index = supervised.cumsum(1) - 1
        total = np.broadcast_to(supervised.sum(1, keepdims=True), supervised.shape)
        self.index = index[supervised]
        """[M] supervised tokens of the same text before it."""
        self.third = 3 * self.index // total[supervised]
        """[M] 0, 1 or 2."""


class Tally:
    """Compares outputs under one control with the outputs that the clip's own signal gave."""

    def __init__(self) -> None:
        self.tokens = 0
        self._elements = self._changed = 0
        self._largest: list[float] = []
        self._kl = 0.0
        self._loss: list[Floats] = []
        self._difference: list[Floats] = []
        self._index: list[np.ndarray] = []
        self._third: list[np.ndarray] = []

    def add(self, own: Tensor, other: Tensor) -> None:
        """Add logits [M, V] with the own signal and under the control."""
        count, largest = changes(own, other)
        self.tokens += own.shape[0]
        self._elements += own.numel()
        self._changed += count
        self._largest.append(largest)
        self._kl += float(divergence(own, other).sum())

    def add_losses(self, own: Floats, other: Floats, where: Positions, chosen: np.ndarray) -> None:
        """Add the losses [M] of the same tokens, in nats; ``chosen`` [M] says which count."""
        self._loss.append(other[chosen])
        self._difference.append((other - own)[chosen])
        self._index.append(where.index[chosen])
        self._third.append(where.third[chosen])

    def report_change(self, rows: Rows, component: str, layer: int | None, prefix: str) -> None:
        """Add how many logits changed and how far."""
        if self._elements == 0:
            return
        rows.add(component, f"{prefix}changed", self._changed / self._elements, "share", layer)
        rows.add(component, f"{prefix}max_change", np.max(self._largest), "logit", layer)

    def report(self, rows: Rows, component: str, layer: int | None = None) -> None:
        """Add all statistics of the control."""
        if self._elements == 0:
            return
        rows.add(component, "tokens", self.tokens, "tokens", layer)
        self.report_change(rows, component, layer, "")
        rows.add(component, "kl", self._kl / self.tokens, "nats/token", layer)
        if not self._loss:
            return
        difference, third = np.concatenate(self._difference), np.concatenate(self._third)
        rows.add(component, "loss", np.concatenate(self._loss).mean(), "nats/token", layer)
        rows.add(component, "loss_change", difference.mean(), "nats/token", layer)
        if difference.size > 1:
            error = difference.std(ddof=1) / difference.size**0.5
            rows.add(component, "loss_change_error", error, "nats/token", layer)
        for number, name in enumerate(THIRDS):
            part = difference[third == number]
            if part.size:
                rows.add(component, f"loss_change_{name}", part.mean(), "nats/token", layer)

    def report_positions(self, rows: Rows) -> None:
        """Add the mean change of loss at each place in the caption, counted from 0."""
        if not self._loss:
            return
        difference, index = np.concatenate(self._difference), np.concatenate(self._index)
        for place in np.unique(index):
            mean = difference[index == place].mean()
            rows.add(f"text:position{place}", "loss_change", mean, "nats/token")
