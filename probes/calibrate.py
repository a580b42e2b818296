"""Propose a projector scale and a gate with which the sound is heard and drowns nothing.

Wanted at the start, in every fusion layer: contribution ||gate * branch|| / ||hidden|| within
``proposal.BAND`` (median over real text tokens, sinks apart), and a first loss at most
``proposal.EXTRA_LOSS`` nats/token above the loss without the signal. The scale is global, so is
the gate's start value, and hidden states grow with depth: this may be impossible. Then the
proposal is the best of what was measured, and says which layers miss.

The search starts where the audio tokens look like the layers' own norm output (frozen key and
value weights were trained on that) and moves the gate; only where the gate would leave its clamp
does it raise the scale. Every step is measured, and the proposal once more on a model built so.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from probes.context import Context
from probes.dials import OPENED
from probes.errors import ProbeError
from probes.proposal import BAND, Proposal, Reading, Setting
from probes.reading import adjusted, norm_rms, read
from probes.resolved_path import ResolvedPath
from probes.signal_path import SignalPath
from probes.snapshot import keep_random_state

ROUNDS = 8
"""Settings tried from one starting scale; three are usual, because contribution is nearly linear
in the gate."""
HEADROOM = 0.8
"""Share of the gate's highest value that is proposed at most: it must be able to open further."""
OTHER_SCALES = (0.5, 2.0)
"""Where no gate fits all layers: further starting scales, because the spread depends on it."""
_MARGIN = 1.05
"""How far inside the band a layer is put that has to be near its edge."""
_PART = 0.6
_STILL = 0.01
"""The search stands still when neither the scale's logarithm nor the gate moves by more."""

Build = Callable[[float, float], nn.Module]
"""(projector scale, gate init) to a freshly initialised model."""


def calibrate(
    build: Build,
    batches: Iterable[Any],
    *,
    scale: float,
    gate_init: float,
    path: SignalPath | Path | str | None = None,
    signal: str = "audio",
    tell: Callable[[Reading], None] = lambda _reading: None,
) -> Proposal:
    """Search, and verify on a fresh build.

    Args:
        build: makes the model of a setting; the random generators are the same at every call.
        batches: real batches; labels are needed for the condition on the loss.
        scale: the projector scale to start from (that of the config).
        gate_init: the stored gate value to start from.
        path: as for ``Context.of``.
        signal: as for ``Context.of``.
        tell: called with every reading, to show progress.

    Raises:
        ProbeError: no fusion with gates, an outer gate at 0, or a branch that is exactly zero.
        PathError: the path does not fit the model.
    """
    bench = _Bench(build, tuple(batches), path, signal, tell)
    given = Setting(scale, gate_init)
    before = bench.read(given)
    wanted = norm_rms(bench.context)
    best = before if before.good else _search(bench, before, wanted)
    trials = bench.trials
    after = bench.verify(best.setting)
    return Proposal(before, after, wanted, trials)


class _Bench:
    """Measures settings: on one model whose scale and gates can be set, else on fresh builds."""

    def __init__(
        self,
        build: Build,
        batches: tuple[Any, ...],
        path: SignalPath | Path | str | None,
        signal: str,
        tell: Callable[[Reading], None],
    ) -> None:
        self._build, self._batches, self._tell = build, batches, tell
        self._path, self._signal = path, signal
        self.trials = 0
        self._context: Context | None = None

    @property
    def context(self) -> Context:
        """The model at hand."""
        assert self._context is not None
        return self._context

    def read(self, setting: Setting) -> Reading:
        """Measure a setting."""
        if self._context is not None and _adjustable(self.context.path):
            with adjusted(self.context.path, setting):
                return self._read(setting)
        return self.verify(setting)

    def verify(self, setting: Setting) -> Reading:
        """Measure a model that was built with the setting."""
        self._context = None  # frees the last model before the next one is made
        restore = keep_random_state()
        try:
            model = self._build(setting.scale, setting.gate_init)
        finally:
            restore()
        self._context = Context.of(model, self._batches, self._path, signal=self._signal)
        return self._read(setting)

    def _read(self, setting: Setting) -> Reading:
        self.trials += 1
        reading = read(self.context, setting)
        self._tell(reading)
        return reading


def _adjustable(path: ResolvedPath) -> bool:
    """Whether the model's scale can be set in place, as its gates can."""
    return isinstance(path.spec.scale, str)


def _search(bench: _Bench, before: Reading, wanted: dict[int, float]) -> Reading:
    """The best reading found from scales at which tokens look like the norms' output."""
    start = before.setting.scale
    if wanted and before.token_rms > 0:
        start *= median(wanted.values()) / before.token_rms
    gate = before.setting.gate_init or OPENED  # nothing can be measured behind a closed gate
    found = [before, *_approach(bench, Setting(start, gate))]
    if not any(map(_arrived, found)):
        raise ProbeError(
            f"at scale {start:g} and gate {gate:g} the contribution is 0 or not finite in every "
            "fusion layer, so no gate can set it: look at `safe-probe magnitude` (a base of zeros "
            "with LoRA B = 0, or NaN in the branch)"
        )
    best = min(found, key=lambda r: r.badness)
    for factor in OTHER_SCALES:
        if not best.good:
            found += _approach(bench, Setting(best.setting.scale * factor, gate))
            best = min(found, key=lambda r: r.badness)
    return best


def _approach(bench: _Bench, setting: Setting) -> Iterator[Reading]:
    """Readings of ever better settings, until one is good or they stand still."""
    least = setting.scale
    for _ in range(ROUNDS):
        reading = bench.read(setting.rounded())
        yield reading
        if reading.good or not _arrived(reading):
            return
        setting = _next(reading, bench.context.path, least)
        moves = (
            math.log(setting.scale / reading.setting.scale),
            setting.gate_init - reading.setting.gate_init,
        )
        if max(map(abs, moves)) < _STILL:
            return


def _next(reading: Reading, path: ResolvedPath, least: float) -> Setting:
    """The gate that brings the layers into the band; a scale above ``least`` if it must.

    Contribution is linear in the gate. In the scale it grows with a power between 1 and 2 (a louder
    sound also sharpens the attention), so of a change of the scale a part is made at a time.
    """
    values = _arrived(reading)
    factor = _factor(values)
    if reading.too_loud:  # as soft as the band allows
        factor = min(factor, _MARGIN * BAND[0] / min(values))
    gate = next(iter(path.gates.values()))
    high = HEADROOM * min(x for x in (gate.high, 1.0) if x is not None)
    strength, scale = _strength(reading.setting.gate_init, gate.transform), reading.setting.scale
    wanted = strength * factor
    if wanted > high:
        return Setting(scale * (wanted / high) ** _PART, _stored(high, gate.transform))
    if scale > least:
        lower = max(least, scale * (wanted / high) ** _PART)
        wanted = min(high, wanted * (scale / lower) ** (1 / _PART))
        scale = lower
    return Setting(scale, _stored(wanted, gate.transform))


def _arrived(reading: Reading) -> list[float]:
    """The contributions above 0 that are finite."""
    return [c for c in reading.contribution.values() if 0 < c < math.inf]


def _factor(values: list[float]) -> float:
    """What to multiply contributions by: most layers in the band, then nearest to its middle.

    The best group of layers, whichever it is, is the one around whose ends the band is centred.
    """
    low, high = BAND
    ends = [(values[i], values[j]) for i in range(len(values)) for j in range(i + 1)]
    middle = math.sqrt(low * high / (min(values) * max(values)))

    def cost(factor: float) -> tuple[int, float]:
        return sum(not low <= factor * c <= high for c in values), abs(math.log(factor / middle))

    return min((math.sqrt(low * high / (a * b)) for a, b in ends), key=cost)


def _strength(stored: float, transform: str) -> float:
    """The gate's factor of a stored value."""
    if transform == "tanh":
        return math.tanh(stored)
    return 1 / (1 + math.exp(-stored)) if transform == "sigmoid" else stored


def _stored(strength: float, transform: str) -> float:
    """The stored value of a gate's factor."""
    if transform == "tanh":
        return math.atanh(strength)
    return math.log(strength / (1 - strength)) if transform == "sigmoid" else strength
