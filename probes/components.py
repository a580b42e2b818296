"""Which part of the signal path a parameter belongs to."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from probes.names import parameters_by_name
from probes.resolved_path import ResolvedPath

COMPONENTS = (
    "encoder",
    "text_embeddings",
    "decoder",
    "lm_head",
    "projector",
    "fusion",
    "gate",
    "other",
)
"""In the order in which a shared parameter finds its owner: what was there before comes first, so
a fusion that borrows a decoder layer's weights does not own them."""


@dataclass(eq=False)
class Owned:
    """One parameter, once, whatever number of names it has."""

    parameter: nn.Parameter
    component: str
    layer: int | None
    name: str
    """Its name inside the component that owns it."""
    also_in: set[str] = field(default_factory=set)
    """Other components that hold it too."""


def owned_parameters(path: ResolvedPath) -> list[Owned]:
    """Every parameter of the model once, with its owner, in the model's order.

    A parameter belongs to the part with the longest name that its own name begins with; one with
    several names to the first of :data:`COMPONENTS` among them. What belongs to the decoder but to
    none of its layers (final norm) has component ``decoder`` and no layer.
    """
    prefixes = _prefixes(path)
    found: dict[int, Owned] = {}
    for name, parameter in parameters_by_name(path.model).items():
        component, layer = _owner(name, prefixes)
        new = Owned(parameter, component, layer, name)
        old = found.setdefault(id(parameter), new)
        parts = old.also_in | {old.component, component}
        if COMPONENTS.index(component) < COMPONENTS.index(old.component):
            old.component, old.layer, old.name = component, layer, name
        old.also_in = parts - {old.component}
    return list(found.values())


def owner_finder(path: ResolvedPath) -> Callable[[str], tuple[str, int | None]]:
    """A function from the name of a module or parameter to its component and layer."""
    prefixes = _prefixes(path)
    return lambda name: _owner(name, prefixes)


def _prefixes(path: ResolvedPath) -> dict[str, tuple[str, int | None]]:
    parent = path.spec.layers.split("*")[0].rstrip(".").rpartition(".")[0]
    prefixes: dict[str, tuple[str, int | None]] = {parent: ("decoder", None)} if parent else {}
    words = {"head": "lm_head"}
    for what, name in path.names.items():
        prefixes[name] = (words.get(what, what), None)
    prefixes |= {name: ("decoder", i) for i, name in path.layer_names.items()}
    prefixes |= {name: ("fusion", i) for i, name in path.fusion_names.items()}
    prefixes |= {gate.name: ("gate", i) for i, gate in path.gates.items()}
    return prefixes


def _owner(name: str, prefixes: dict[str, tuple[str, int | None]]) -> tuple[str, int | None]:
    end = len(name)
    while end > 0:
        if name[:end] in prefixes:
            return prefixes[name[:end]]
        end = name.rfind(".", 0, end)
    return "other", None
