"""Statistics of one parameter's gradient over batches, from one running mean."""

import math

import torch
from torch import Tensor

from probes.ledger import State
from probes.norms import precise_norm


class GradientTally:
    """Adds up the gradients of one parameter; keeps their mean and some numbers.

    A batch that gave no gradient counts as a gradient of zero, as it does in accumulation.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        """Mean gradient, float32 (float64 for float64); None while there was none, or taken."""
        self.absent = True
        """Whether no batch gave a gradient."""
        self.norms: list[float] = []
        """L2 norm of each batch's gradient; 0 where there was none."""
        self.scatter = 0.0
        """Sum over batches of ||gradient - mean||^2 (Welford)."""

    def add(self, gradient: Tensor | None, scale: float = 1.0) -> None:
        """Add the gradient of the next batch, which was multiplied by ``scale``.

        It is copied: autograd may give one storage to two parameters (that of a sum of two views),
        so whoever changed the gradient of one would change the other's.
        """
        if gradient is None:
            self.norms.append(0.0)
            delta = None if self.mean is None else -self.mean
        else:
            wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
            if gradient.layout != torch.strided:
                gradient = gradient.to_dense()
            delta = gradient.detach().to(wide, copy=True)
            if scale != 1.0:
                delta /= scale
            self.norms.append(precise_norm(delta))
            self.absent = False
            if self.mean is not None:
                delta -= self.mean
        if delta is None:
            return
        count = len(self.norms)
        distance = self.norms[-1] if self.mean is None else precise_norm(delta)
        self.scatter += distance * distance * (count - 1) / count
        if self.mean is None:  # the mean of nothing, or of batches without a gradient, is zero
            self.mean = delta if count == 1 else delta.div_(count)
        else:
            self.mean.add_(delta, alpha=1 / count)

    def take_mean(self) -> Tensor | None:
        """The mean, which is not kept any longer."""
        mean, self.mean = self.mean, None
        return mean

    @property
    def state(self) -> State:
        """Over all batches; exactly zero only when every element was zero in every batch."""
        if self.absent:
            return State.NONE
        if not all(map(math.isfinite, self.norms)):
            return State.NONFINITE
        return State.FINITE if any(self.norms) else State.ZERO

    @property
    def silent(self) -> float:
        """Share of the batches without any gradient: None or exactly zero."""
        return self.norms.count(0.0) / len(self.norms)
