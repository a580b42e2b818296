"""The waveforms of the built-in events: one small NumPy function per kind of sound.

Each renderer takes a random generator and a length in samples and returns float64 [n] at any
level; the caller sets loudness. Everything is float64 and rounded once, to 16 bit, so that the
samples are the same on every machine: the last-bit differences between two processors' `sin` are
nine orders of magnitude below one quantisation step.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples per second of every built-in clip."""

Wave = NDArray[np.float64]
Generator = np.random.Generator
Renderer = Callable[[Generator, int], Wave]


def _time(n: int) -> Wave:
    return np.arange(n) / SAMPLE_RATE


def _phase(frequency: Any, n: int) -> Wave:
    """Phase in radians of an oscillator whose frequency (Hz) may change from sample to sample."""
    return (
        2
        * np.pi
        * np.cumsum(np.broadcast_to(np.asarray(frequency, dtype=np.float64), n))
        / SAMPLE_RATE
    )


def _harmonics(phase: Wave, weights: Iterable[float]) -> Wave:
    total = np.zeros_like(phase)
    for number, weight in enumerate(weights, start=1):
        if weight:
            total += weight * np.sin(number * phase)
    return total


def _gate(n: int, on: float, off: float) -> Wave:
    """1 for `on` seconds, 0 for `off` seconds, again and again, with 5 ms flanks."""
    within = np.mod(_time(n), on + off)
    return np.clip(np.minimum(within, on - within) / 0.005, 0.0, 1.0)


def _filter(wave: Wave, low: float, high: float) -> Wave:
    """Keep the band low..high (Hz) with smooth shoulders, at a length that the FFT likes."""
    n = len(wave)
    padded = -(-n // 2000) * 2000
    frequency = np.fft.rfftfreq(padded, 1 / SAMPLE_RATE)
    shape = 1 / (1 + (low / np.maximum(frequency, 1.0)) ** 4) / (1 + (frequency / high) ** 6)
    return np.fft.irfft(np.fft.rfft(wave, padded) * shape, padded)[:n]


def _noise(rng: Generator, n: int, low: float, high: float) -> Wave:
    return _filter(rng.standard_normal(n), low, high)


def _grains(rng: Generator, n: int, per_second: float, low: float, high: float) -> Wave:
    """Randomly placed short clicks of random strength, coloured by a band."""
    hits = rng.random(n) < per_second / SAMPLE_RATE
    return _filter(hits * rng.standard_normal(n), low, high)


def _drift(rng: Generator, n: int, points: int, low: float, high: float) -> Wave:
    """A slow random curve between low and high."""
    return np.interp(
        np.linspace(0, 1, n), np.linspace(0, 1, points), rng.uniform(low, high, points)
    )


def _decay(n: int, seconds: float) -> Wave:
    return np.exp(-_time(n) / seconds)


def _strike(n: int, frequencies: Iterable[float], seconds: float) -> Wave:
    """Struck resonances: decaying sines that start together."""
    total = np.zeros(n)
    for frequency in frequencies:
        total += np.sin(2 * np.pi * frequency * _time(n))
    return total * _decay(n, seconds)


def _place(n: int, hits: Iterable[tuple[float, Wave]]) -> Wave:
    """Add each (start in seconds, wave) into n samples; what runs over the end is cut."""
    out = np.zeros(n)
    for start, wave in hits:
        first = int(start * SAMPLE_RATE)
        if first < n:
            part = wave[: n - first]
            out[first : first + len(part)] += part
    return out


def _beats(rng: Generator, n: int, period: float, jitter: float = 0.0) -> Wave:
    """Start times (seconds) about `period` apart, beginning at once."""
    count = int(n / SAMPLE_RATE / period) + 1
    return np.maximum(0.0, np.arange(count) * period + jitter * period * rng.uniform(-1, 1, count))


def _samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE)


def hum(rng: Generator, n: int) -> Wave:
    """A steady low tone with a few harmonics."""
    phase = _phase(rng.uniform(55, 110), n)
    return _harmonics(phase, [1, 0.7, 0.4, 0.2, 0.1]) * (
        1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * _time(n))
    )


def beep(rng: Generator, n: int) -> Wave:
    """A pure high tone, on and off."""
    on = rng.uniform(0.1, 0.25)
    return np.sin(_phase(rng.uniform(900, 2200), n)) * _gate(n, on, on * rng.uniform(0.7, 1.3))


def _sweep(rng: Generator, n: int, upward: bool) -> Wave:
    length = min(n, _samples(rng.uniform(0.9, 1.6)))
    ramp = np.linspace(0, 1, length) if upward else np.linspace(1, 0, length)
    one = np.sin(_phase(rng.uniform(220, 450) * rng.uniform(6, 10) ** ramp, length)) * _gate(
        length, length / SAMPLE_RATE, 1
    )
    return _place(n, ((start, one) for start in _beats(rng, n, length / SAMPLE_RATE + 0.1)))


def rising(rng: Generator, n: int) -> Wave:
    """A tone that sweeps up, again and again."""
    return _sweep(rng, n, upward=True)


def falling(rng: Generator, n: int) -> Wave:
    """A tone that sweeps down, again and again."""
    return _sweep(rng, n, upward=False)


def click(rng: Generator, n: int) -> Wave:
    """Short bright clicks at irregular times, as of a mouse or keys."""
    low, size = rng.uniform(1500, 2500), 400
    starts = np.cumsum(rng.exponential(rng.uniform(0.1, 0.18), 60) + 0.04) - 0.04
    return _place(
        n,
        (
            (s, rng.uniform(0.5, 1) * _noise(rng, size, low, 7000) * _decay(size, 0.004))
            for s in starts
        ),
    )


def siren(rng: Generator, n: int) -> Wave:
    """A wailing tone that swings up and down."""
    swing = np.sin(2 * np.pi * rng.uniform(0.5, 1.3) * _time(n) + rng.uniform(0, 6.28))
    return _harmonics(
        _phase(rng.uniform(650, 950) * 2 ** (rng.uniform(0.4, 0.6) * swing), n), [1, 0.5, 0.3]
    )


def buzzer(rng: Generator, n: int) -> Wave:
    """A harsh square-like tone in long bursts."""
    weights = [1 / k if k % 2 else 0.0 for k in range(1, 30)]
    return _harmonics(_phase(rng.uniform(120, 220), n), weights) * _gate(
        n, rng.uniform(0.4, 0.8), rng.uniform(0.1, 0.25)
    )


def rain(rng: Generator, n: int) -> Wave:
    """Dense fine droplets over a hiss."""
    drops = _grains(rng, n, rng.uniform(500, 1200), rng.uniform(1500, 2500), 7000)
    return drops + rng.uniform(0.05, 0.12) * _noise(rng, n, 800, 6000)


def waves(rng: Generator, n: int) -> Wave:
    """Noise that swells and ebbs every second or two."""
    turn = np.mod(_time(n) / rng.uniform(1.2, 1.8) + rng.uniform(0, 0.3), 1.0)
    swell = np.minimum(turn / 0.4, (1 - turn) / 0.6) ** 2
    return _noise(rng, n, 150, rng.uniform(1800, 3000)) * (0.06 + swell)


def clock(rng: Generator, n: int) -> Wave:
    """Tick and tock, strictly regular."""
    size, pitch = 800, rng.uniform(2200, 3200)
    tick = _strike(size, [pitch, pitch * 1.47], 0.006)
    tock = 0.8 * _strike(size, [pitch * 0.78, pitch * 1.21], 0.008)
    return _place(
        n,
        (
            (s, tock if i % 2 else tick)
            for i, s in enumerate(_beats(rng, n, rng.uniform(0.25, 0.5)))
        ),
    )


def bell(rng: Generator, n: int) -> Wave:
    """Struck inharmonic partials that ring on."""
    pitch = rng.uniform(450, 950)
    one = _strike(
        _samples(1.5), [pitch * ratio for ratio in (1, 2.0, 2.4, 3.0, 4.5)], rng.uniform(0.3, 0.6)
    )
    return _place(n, ((s, one) for s in _beats(rng, n, rng.uniform(0.6, 1.1), 0.05)))


def knock(rng: Generator, n: int) -> Wave:
    """Groups of three or four wooden knocks."""
    size, pitch = 1600, rng.uniform(280, 450)
    one = _strike(size, [pitch, pitch * 1.6, pitch * 2.3], 0.012) + 0.5 * _noise(
        rng, size, 300, 1500
    ) * _decay(size, 0.01)
    gap, group = rng.uniform(0.13, 0.19), int(rng.integers(3, 5))
    return _place(
        n,
        (
            (s + gap * k, one)
            for s in _beats(rng, n, gap * group + rng.uniform(0.3, 0.5))
            for k in range(group)
        ),
    )


def drum(rng: Generator, n: int) -> Wave:
    """Kick and snare in a steady pattern."""
    size = _samples(0.25)
    kick = np.sin(_phase(50 + 120 * _decay(size, 0.03), size)) * _decay(size, 0.1)
    snare = 0.7 * _noise(rng, size, 1200, 6000) * _decay(size, 0.06) + 0.5 * _strike(
        size, [190.0], 0.05
    )
    starts = _beats(rng, n, rng.uniform(0.2, 0.3))
    return _place(
        n, ((s, snare if i % 4 == 2 else kick) for i, s in enumerate(starts) if i % 4 != 3)
    )


def whistle(rng: Generator, n: int) -> Wave:
    """A gliding, slightly wavering high tone with breath."""
    glide = rng.uniform(1500, 2500) * 2 ** _drift(rng, n, max(3, n // 6000), -0.35, 0.35)
    wobble = 1 + 0.015 * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * _time(n))
    return np.sin(_phase(glide * wobble, n)) * _gate(
        n, rng.uniform(0.5, 0.9), 0.08
    ) + 0.03 * _noise(rng, n, 1500, 4000)


def telephone(rng: Generator, n: int) -> Wave:
    """A fast two-tone trill, ringing and pausing."""
    pitch = rng.uniform(1000, 1500)
    trill = np.where(np.mod(_time(n) * rng.uniform(11, 14), 1) < 0.5, pitch, pitch * 1.26)
    return _harmonics(_phase(trill, n), [1, 0.3, 0.4]) * _gate(
        n, rng.uniform(0.6, 0.9), rng.uniform(0.25, 0.4)
    )


def alarm(rng: Generator, n: int) -> Wave:
    """Two square-like tones in turn."""
    pitch = rng.uniform(600, 900)
    two_tone = np.where(
        np.mod(_time(n) / rng.uniform(0.35, 0.6), 1) < 0.5, pitch, pitch * rng.uniform(1.3, 1.5)
    )
    return _harmonics(_phase(two_tone, n), [1, 0, 0.5, 0, 0.35, 0, 0.2])


def engine(rng: Generator, n: int) -> Wave:
    """Strokes of a slowly changing rate with a rough rumble."""
    phase = _phase(_drift(rng, n, 4, 28, 55) * (1 + 0.02 * _noise(rng, n, 5, 50)), n)
    strokes = np.maximum(0.0, np.sin(phase)) ** 6
    return strokes * (_noise(rng, n, 80, 600) + 0.8) + 0.5 * _harmonics(
        phase, [1, 0.8, 0.6, 0.5, 0.4, 0.3]
    )


def wind(rng: Generator, n: int) -> Wave:
    """Low noise in gusts, with a howl."""
    low = _noise(rng, n, 80, 350) * _drift(rng, n, 6, 0.3, 1.0)
    howl = _noise(rng, n, 380, 650) * _drift(rng, n, 6, 0.0, 0.7)
    return low + howl


def _tweet(rng: Generator) -> Wave:
    length = _samples(rng.uniform(0.06, 0.12))
    glide = np.linspace(rng.uniform(2600, 5800), rng.uniform(2600, 5800), length)
    return np.sin(_phase(glide, length)) * np.hanning(length)


def bird(rng: Generator, n: int) -> Wave:
    """Groups of short high calls that glide up or down."""
    calls, gap = [_tweet(rng) for _ in range(int(rng.integers(2, 5)))], rng.uniform(0.12, 0.16)
    period = gap * len(calls) + rng.uniform(0.1, 0.35)
    return _place(
        n, ((s + gap * k, call) for s in _beats(rng, n, period) for k, call in enumerate(calls))
    )


def cricket(rng: Generator, n: int) -> Wave:
    """A very high tone chopped into fast pulses."""
    pulses = np.maximum(0.0, np.sin(2 * np.pi * rng.uniform(26, 38) * _time(n))) ** 2
    return (
        np.sin(_phase(rng.uniform(4200, 5400), n))
        * pulses
        * _gate(n, rng.uniform(0.12, 0.3), rng.uniform(0.1, 0.25))
    )


def frog(rng: Generator, n: int) -> Wave:
    """Rasping low croaks."""
    length = _samples(rng.uniform(0.2, 0.32))
    rasp = np.maximum(0.0, np.sin(2 * np.pi * rng.uniform(32, 48) * _time(length))) ** 3
    croak = _harmonics(
        _phase(np.linspace(1, 1.3, length) * rng.uniform(330, 480), length), [0.6, 1, 0.7, 0.3]
    )
    return _place(
        n,
        (
            (s, croak * rasp * np.hanning(length))
            for s in _beats(rng, n, rng.uniform(0.45, 0.7), 0.1)
        ),
    )


def footsteps(rng: Generator, n: int) -> Wave:
    """Soft thumps with a gritty edge, at walking pace."""
    size = _samples(0.2)
    thump = np.sin(_phase(rng.uniform(70, 110), size)) * _decay(size, 0.035)
    starts = _beats(rng, n, rng.uniform(0.38, 0.55), 0.05)
    grit = rng.uniform(0.5, 0.9)
    return _place(
        n, ((s, thump + grit * _noise(rng, size, 900, 4000) * _decay(size, 0.05)) for s in starts)
    )


def drip(rng: Generator, n: int) -> Wave:
    """Single drops: short tones that bend upward."""
    size = _samples(0.12)
    starts = np.cumsum(rng.uniform(0.18, 0.45, 24)) - 0.18
    pitches = rng.uniform(900, 1700, 24)
    bend = np.linspace(1, 1.9, size)
    return _place(
        n,
        (
            (s, np.sin(_phase(p * bend, size)) * _decay(size, 0.02))
            for s, p in zip(starts, pitches, strict=True)
        ),
    )


def laser(rng: Generator, n: int) -> Wave:
    """Fast bright sweeps downward."""
    length = _samples(rng.uniform(0.15, 0.28))
    ramp = np.linspace(1, 0, length)
    zap = _harmonics(
        _phase(rng.uniform(300, 500) * rng.uniform(9, 13) ** ramp, length), [1, 0.5, 0.3]
    ) * np.sqrt(ramp)
    return _place(n, ((s, zap) for s in _beats(rng, n, rng.uniform(0.3, 0.5))))


def melody(rng: Generator, n: int) -> Wave:
    """A quick arpeggio of plucked notes."""
    size, base, step = _samples(0.5), rng.uniform(240, 460), rng.uniform(0.14, 0.22)
    chord = rng.permutation([0, 4, 7, 12, 16])
    notes = [
        _harmonics(_phase(base * 2 ** (k / 12), size), [1, 0.4, 0.2]) * _decay(size, 0.15)
        for k in chord
    ]
    return _place(n, ((s, notes[i % len(notes)]) for i, s in enumerate(_beats(rng, n, step))))


def applause(rng: Generator, n: int) -> Wave:
    """Many hands: dense dull claps."""
    return _grains(rng, n, rng.uniform(50, 110), 500, rng.uniform(2000, 3000)) * _drift(
        rng, n, 5, 0.7, 1.0
    )


def static(rng: Generator, n: int) -> Wave:
    """Full-band noise with crackles."""
    return _noise(rng, n, 100, 8000) * (
        1 + 0.3 * (_drift(rng, n, max(3, n // 800), -1, 1))
    ) + 2 * _grains(rng, n, 15, 500, 8000)


def heartbeat(rng: Generator, n: int) -> Wave:
    """Low double thumps."""
    size, pitch, period = _samples(0.2), rng.uniform(45, 65), rng.uniform(0.7, 1.0)
    lub = _harmonics(_phase(pitch, size), [1, 0.6, 0.2]) * _decay(size, 0.05)
    dub = 0.7 * _harmonics(_phase(pitch * 1.25, size), [1, 0.6, 0.2]) * _decay(size, 0.04)
    return _place(
        n,
        ((s + d, w) for s in _beats(rng, n, period) for d, w in ((0.0, lub), (0.3 * period, dub))),
    )
