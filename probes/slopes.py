"""Is the gradient that backward gives the slope of the loss? Finite differences tell.

A gradient can be finite, of a usual size, and wrong: reversed by a hook, replaced by noise, scaled,
or cut on one of several ways. So the parameters of each component are moved a little, along the
gradient and along random directions, and the change of the loss is compared with what the gradient
says. The step is the shortest that rounding allows, if the gradient is right; where that tells
nothing, shorter ones are tried along the gradient, which only a larger slope than it says can show.
Where the slopes forwards, backwards and of a step four times as long do not agree (a kink, a curve,
coarse dtypes), there is nothing to say.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probes.norms import precise_norm
from probes.snapshot import keep_random_state

DRAWS = 3
"""Random directions of each component."""
_ROUNDING = 2e-6
"""Error of a float32 loss, relative to it (measured: at most 4e-7 in 26 float32 set-ups)."""
_RESOLVED = 20
"""By how much a change of the loss must exceed its rounding to count."""
_WIDER = 4.0
"""The second step over the first."""
_CURVED = 0.05
"""Largest difference of the slopes that agree, relative to what is expected."""
_RELATIVE = 0.05
"""Longest step, relative to the norm of the weights."""
_STEEPER = (10.0, 100.0, 1e3, 1e4)
"""How many times larger than expected the slope is taken to be when that tells nothing."""


@dataclass(frozen=True)
class Slope:
    """The gradient of one component, checked."""

    along_gradient: float | None
    """Measured slope along the gradient / its norm; 1 when right, None when it cannot be told."""
    random_mismatch: float | None
    """RMS over random directions of measured minus expected slope / RMS of expected ones; 0 when
    right, about sqrt(missing / present) when a part of the gradient is missing."""


def fine_enough(model: nn.Module, device: torch.device) -> bool:
    """Whether every weight is float32 or float64 and nothing is computed in less."""
    coarse = any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters())
    return not coarse and not torch.is_autocast_enabled(device.type)


def slopes(
    parts: Mapping[str, Sequence[nn.Parameter]], loss: Callable[[bool], float]
) -> dict[str, Slope]:
    """Check the gradient of each part; the parameters are as before, bit for bit.

    Args:
        parts: trainable parameters by component.
        loss: computes the loss; with True also its gradients, into ``.grad``. It is called with
            the random generators in the same state every time.
    """
    meter = _Meter(loss)
    start = meter.loss(True)
    gradients = {id(p): p.grad for members in parts.values() for p in members}
    for members in parts.values():
        for parameter in members:
            parameter.grad = None
    found = {}
    for name, members in parts.items():
        dense = {id(p): g.to_dense() for p in members if (g := gradients[id(p)]) is not None}
        having = [p for p in members if id(p) in dense]
        norm = math.hypot(*(precise_norm(dense[id(p)]) for p in having))
        if math.isfinite(start) and math.isfinite(norm) and norm > 0:
            found[name] = meter.check(start, having, dense, norm)
    return found


class _Meter:
    """Moves parameters and looks at the loss."""

    def __init__(self, loss: Callable[[bool], float]) -> None:
        self._loss = loss

    def loss(self, gradient: bool = False) -> float:
        """With the random generators as they are on entry, also afterwards."""
        restore = keep_random_state()
        try:
            return self._loss(gradient)
        finally:
            restore()

    def check(
        self, start: float, members: list[nn.Parameter], gradients: dict[int, Tensor], norm: float
    ) -> Slope:
        """Both checks of one component."""
        weight = math.hypot(*(precise_norm(p) for p in members)) or 1.0
        along = [gradients[id(p)] / norm for p in members]
        slope = self._slope(start, members, along, norm, weight)
        if slope is None:
            slope = self._steep(start, members, along, norm, weight)
        ratio = None if slope is None else slope / norm
        usual = self._usual(members, gradients)
        pairs = []
        for draw in range(DRAWS):
            direction = list(_random(members, draw))
            each = zip(members, direction, strict=True)
            expected = sum(_inner(gradients[id(p)], d) for p, d in each)
            measured = self._slope(start, members, direction, usual, weight)
            if measured is None:
                return Slope(ratio, None)
            pairs.append((measured, expected))
        wrong = sum((m - e) ** 2 for m, e in pairs)
        return Slope(ratio, math.sqrt(wrong / (DRAWS * usual * usual)))

    def _usual(self, members: list[nn.Parameter], gradients: dict[int, Tensor]) -> float:
        """Standard deviation of the gradient's slope along random directions."""
        parts = (precise_norm(gradients[id(p)]) ** 2 / p.numel() for p in members)
        return math.sqrt(sum(parts) / len(members))

    def _slope(
        self, start: float, members: list[nn.Parameter], direction: list[Tensor],
        expected: float, weight: float,
    ) -> float | None:  # fmt: skip
        """The slope along ``direction``; None when no step tells it to a tenth of ``expected``."""
        step = _step(start, expected)
        if _WIDER * step > _RELATIVE * weight:
            return None
        forwards, backwards = self._sides(start, members, direction, step)
        slope = (forwards + backwards) / 2
        wider = sum(self._sides(start, members, direction, _WIDER * step)) / 2
        agree = max(abs(forwards - backwards) / 2, abs(slope - wider)) <= _CURVED * expected
        return slope if agree else None

    def _steep(
        self, start: float, members: list[nn.Parameter], direction: list[Tensor],
        expected: float, weight: float,
    ) -> float | None:  # fmt: skip
        """A slope that is many times larger than ``expected``; None when none is found."""
        for taken in (expected * times for times in _STEEPER):
            step = _step(start, taken)
            if _WIDER * step > _RELATIVE * weight:
                continue
            with _moved(members, direction, step):
                told = abs(self.loss() - start) > step * taken / 2
            slope = self._slope(start, members, direction, taken, weight) if told else None
            if slope is not None:
                return slope
        return None

    def _sides(
        self, start: float, members: list[nn.Parameter], direction: list[Tensor], step: float
    ) -> tuple[float, float]:
        """Slopes of a step forwards and of one backwards."""
        with _moved(members, direction, step):
            forwards = (self.loss() - start) / step
        with _moved(members, direction, -step):
            backwards = (start - self.loss()) / step
        return forwards, backwards


def _inner(gradient: Tensor, direction: Tensor) -> float:
    """Their inner product, float64 over the rows only: a float64 copy is twice the gradient."""
    return float((gradient * direction).sum(-1).sum(dtype=torch.float64))


def _step(start: float, slope: float) -> float:
    """The shortest step whose change of the loss, by this slope, stands out of its rounding."""
    return _RESOLVED * _ROUNDING * max(1.0, abs(start)) / slope


@contextmanager
def _moved(
    members: Sequence[nn.Parameter], direction: Sequence[Tensor], step: float
) -> Iterator[None]:
    before = [p.detach().clone() for p in members]
    try:
        for parameter, way in zip(members, direction, strict=True):
            parameter.data.add_(way.to(parameter.dtype), alpha=step)
        yield
    finally:
        for parameter, value in zip(members, before, strict=True):
            parameter.data.copy_(value)


def _random(members: Sequence[nn.Parameter], draw: int) -> Iterator[Tensor]:
    """A direction of norm 1 in which every tensor has the same share; always the same one."""
    for number, parameter in enumerate(members):
        generator = torch.Generator().manual_seed(1_000 * draw + number)
        way = torch.randn(parameter.shape, generator=generator)
        share = way / (way.norm() * len(members) ** 0.5)
        yield share.to(parameter.device)
