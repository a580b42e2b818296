"""A signal path found in a model: the modules and parameters themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from probes.errors import PathError
from probes.knobs import Gate, Knob, find_knob, outer_gate_value, tensors_by_name
from probes.names import find, match, modules_by_name, near_misses, runnable
from probes.signal_path import PER_LAYER, PerLayer, SignalPath


@dataclass(frozen=True, eq=False)
class ResolvedPath:
    """The places of a :class:`SignalPath` in one model."""

    spec: SignalPath
    model: nn.Module
    """The module to call: the model without data-parallel and compile wrappers."""
    bare: nn.Module
    """The model without any wrapper, to read attributes from."""
    projector: nn.Module
    layers: dict[int, nn.Module]
    """All decoder layers by number."""
    names: dict[str, str]
    """Component to the (unwrapped) name of its module."""
    layer_names: dict[int, str]
    encoder: nn.Module | None = None
    text_embeddings: nn.Module | None = None
    head: nn.Module | None = None
    fusion: dict[int, nn.Module] = field(default_factory=dict)
    """Fusion blocks by decoder layer, ascending; empty when the signal is spliced."""
    fusion_names: dict[int, str] = field(default_factory=dict)
    residual: dict[int, nn.Module] = field(default_factory=dict)
    branch: dict[int, nn.Module] = field(default_factory=dict)
    attention: dict[int, nn.Module] = field(default_factory=dict)
    gates: dict[int, Gate] = field(default_factory=dict)
    knobs: tuple[Knob, ...] = ()
    """The projector's scale first (when it has a name), then the further knobs."""

    @property
    def scale(self) -> float | None:
        """Largest possible absolute value of the projector's output now; None when unknown."""
        scale = self.spec.scale
        if scale is None or not isinstance(scale, str):
            return scale
        raw = self.knobs[0].raw
        return float(raw.detach().abs().max()) if isinstance(raw, Tensor) else float(raw)

    @property
    def outer_gate(self) -> float:
        """The factor before all gates now, warm-up included; 1 when the model has none."""
        outer = self.spec.outer_gate
        if outer is None:
            return 1.0
        if isinstance(outer, str):
            return outer_gate_value(self.bare, outer)
        return float(outer(self.bare))


def resolve(path: SignalPath, model: nn.Module) -> ResolvedPath:
    """Find everything that ``path`` names in ``model``.

    Raises:
        PathError: a name matches nothing (near misses are listed), layers contradict each other,
            or the model cannot be measured.
    """
    modules = modules_by_name(model)
    layer_names = match(path.layers, modules)
    if not layer_names:
        hint = near_misses(path.layers.replace("*", "{layer}"), modules)
        raise PathError(f"layers: nothing in the model fits {path.layers!r}{hint}")
    names = {
        what: find(name, modules, what)
        for what in ("encoder", "projector", "text_embeddings", "head")
        if (name := getattr(path, what)) is not None
    }
    fusion_names = _per_layer("fusion", path.fusion, modules, layer_names)
    places = {
        what: _per_layer(what, getattr(path, what), modules, layer_names) for what in PER_LAYER
    }
    for what, found in places.items():
        _check_complete(what, found, fusion_names)
    scale = (path.scale,) if isinstance(path.scale, str) else ()
    parts: dict[str, Any] = {what: modules[name] for what, name in names.items()}
    for what, found in places.items():
        parts[what] = {i: modules[name] for i, name in found.items()}
    resolved = ResolvedPath(
        spec=path,
        model=runnable(model),
        bare=modules[""],
        layers={i: modules[name] for i, name in layer_names.items()},
        names=names,
        layer_names=layer_names,
        fusion_names=fusion_names,
        gates=_gates(path, model, layer_names, fusion_names),
        knobs=tuple(find_knob(model, name, "knobs") for name in (*scale, *path.knobs)),
        **parts,
    )
    resolved.outer_gate  # noqa: B018 - a wrong attribute shows here, not in the middle of a probe
    return resolved


def _per_layer(
    what: str, value: PerLayer | None, known: Mapping[str, object], layers: Mapping[int, str]
) -> dict[int, str]:
    """Decoder layer to name, ascending; empty when the path does not have this part."""
    if value is None:
        return {}
    if isinstance(value, str):
        found = match(value, known)
        if not found:
            hint = near_misses(value, known)
            raise PathError(f"{what}: nothing in the model fits {value!r}{hint}")
    else:
        found = {i: find(name, known, f"{what} of layer {i}") for i, name in sorted(value.items())}
    beyond = [i for i in found if i not in layers]
    if beyond:
        raise PathError(
            f"{what}: {found[beyond[0]]!r} belongs to decoder layer {beyond[0]}, but the decoder "
            f"has layers {min(layers)} to {max(layers)}; if the model counts fusion layers "
            "differently, give a mapping from decoder layer to name"
        )
    return found


def _check_complete(what: str, found: Mapping[int, str], fusion: Mapping[int, str]) -> None:
    if found and set(found) != set(fusion):
        raise PathError(
            f"{what} is at layers {sorted(found)} but fusion at layers {sorted(fusion)}; "
            "every fusion layer must have one"
        )


def _gates(
    path: SignalPath, model: nn.Module, layers: Mapping[int, str], fusion: Mapping[int, str]
) -> dict[int, Gate]:
    spec = path.gates
    if spec is None:
        return {}
    tensors = tensors_by_name(model)
    found = _per_layer("gates", spec.name, tensors, layers)
    _check_complete("gates", found, fusion)
    return {
        i: Gate(i, name, tensors[name], spec.low, spec.high, spec.transform)
        for i, name in found.items()
    }
