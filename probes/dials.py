"""Knobs and gates turned up and down alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.knobs import Gate, Knob, find_knob
from probes.resolved_path import ResolvedPath

OPENED = 0.1
"""Stored value at which a gate that stands at exactly 0 is measured: multiples of 0 are 0."""


@dataclass(frozen=True, eq=False)
class Dial:
    """Something that is meant to change the signal's strength."""

    component: str
    """Its part of the signal path; a knob's name as the detail."""
    layer: int | None
    """Fusion layer of a gate."""
    knob: Knob
    gate: Gate | None

    def strength(self) -> float:
        """What it is now: a gate's factor after transform and clamp (L2 norm of several)."""
        if self.gate is not None:
            return float(self.gate.values().norm())
        raw = self.knob.raw
        return float(raw.detach().double().norm()) if isinstance(raw, Tensor) else float(abs(raw))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside the ``with`` block a closed gate stands at :data:`OPENED`."""
        tensor = None if self.gate is None else self.gate.tensor
        if tensor is None or bool((tensor != 0).any()):
            yield
            return
        before = tensor.detach().clone()
        try:
            tensor.data.fill_(OPENED)
            yield
        finally:
            tensor.data.copy_(before)


def dials(path: ResolvedPath) -> list[Dial]:
    """The knobs of the path (the projector's scale first), then its gates."""
    found = [Dial(f"{_part(path, k.name)}:{k.name}", None, k, None) for k in path.knobs]
    for layer, gate in path.gates.items():
        knob = find_knob(path.model, gate.name, "gates")
        found.append(Dial("gate", layer, knob, gate))
    return [dial for dial in found if _can_turn(dial)]


def _part(path: ResolvedPath, name: str) -> str:
    inside = f"{name}.".startswith(f"{path.names['projector']}.")
    return "projector" if inside or name == path.spec.scale else "other"


def _can_turn(dial: Dial) -> bool:
    raw = dial.knob.raw
    return not isinstance(raw, Tensor) or (
        raw.is_floating_point() and bool(torch.isfinite(raw).all())
    )
