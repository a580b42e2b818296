"""The registry of faults: what is planted, where it was seen, and which finding must name it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.faults.bench import Bench, build

Plant = Callable[[Bench], None]
Layers = Literal["all", "first", "last", "any"]
"""At which fusion layers a finding that is about layers must be; any: it depends on sizes."""
BASE: Mapping[str, Any] = {
    "backbone": "llama",
    "model__projector__scale": 10.0,  # contribution 0.1-0.3, as a calibrated model has
    "model__fusion__gate_init": 0.5,
}
"""The healthy set-up that a fault changes, unless it says otherwise."""
TRAINED: Mapping[str, Any] = {"backbone": "embedded"}
"""For faults that show only after training: a language model that knows language."""


@dataclass(frozen=True)
class Fault:
    """One planted fault."""

    name: str
    about: str
    """What is wrong, in a sentence."""
    source: str
    """Where it was seen: an issue, a paper, the seed."""
    expected: tuple[tuple[str, str], ...]
    """Code and component, one of which must be found."""
    plant: Plant
    base: Mapping[str, Any] = field(default_factory=dict)
    """Differences from ``BASE``."""
    layers: Layers = "all"
    """Where it was planted."""

    def build(self) -> Bench:
        """A set-up with the fault in it."""
        bench = build(**{**BASE, **self.base})
        self.plant(bench)
        return bench


FAULTS: dict[str, Fault] = {}


def fault(
    source: str, *expected: str, layers: Layers = "all", **base: Any
) -> Callable[[Plant], Plant]:
    """Enter the decorated function; its name and docstring are those of the fault.

    Args:
        source: provenance.
        expected: ``"CODE component"``, one of which must be found.
        layers: where it was planted.
        base: differences from ``BASE``.
    """

    def enter(plant: Plant) -> Plant:
        pairs = tuple((code, part) for code, part in (e.split(" ") for e in expected))
        name = plant.__name__
        assert name not in FAULTS and plant.__doc__
        FAULTS[name] = Fault(name, plant.__doc__, source, pairs, plant, base, layers)
        return plant

    return enter
