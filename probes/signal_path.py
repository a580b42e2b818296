"""SignalPath: where in a model the new signal travels, by the names of modules and parameters.

Written by hand for a foreign model (Python, or the same keys in YAML)::

    projector: adapter.projector
    scale: adapter.projector.scale
    layers: lm.blocks.*
    fusion: adapter.cross.{layer}
    branch: adapter.cross.{layer}.out
    gates: {name: "adapter.gates.{layer}", transform: tanh}
    signal_input: audio

Names are those of ``model.named_modules()``, without the prefixes of DDP, torch.compile or PEFT.
``{layer}`` stands for the number of the decoder layer; where the model counts differently, give a
mapping from decoder layer to name instead. ``*`` is for ``layers`` alone: every other name must
mean one module or parameter, so that a number is never one of several places together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from configs.errors import ConfigError, did_you_mean, shown
from configs.yaml_text import read_yaml
from probes.errors import PathError

if TYPE_CHECKING:
    from probes.resolved_path import ResolvedPath

PerLayer = str | Mapping[int, str]
"""A name with ``{layer}`` in it, or a mapping from decoder layer to name."""
PER_LAYER = ("fusion", "residual", "branch", "attention")
TRANSFORMS = ("none", "tanh", "sigmoid")


@dataclass(frozen=True)
class GatePath:
    """Where the gates are, and how a raw gate becomes the factor before the branch."""

    name: PerLayer
    """Parameter (or buffer) of each fusion layer."""
    low: float | None = None
    """Lower end of the clamp; None when there is none."""
    high: float | None = None
    """Upper end of the clamp; None when there is none."""
    transform: Literal["none", "tanh", "sigmoid"] = "none"
    """Function applied to the raw value, before the clamp."""

    def __post_init__(self) -> None:
        _check_per_layer("gates", self.name)
        if self.transform not in TRANSFORMS:
            allowed = ", ".join(TRANSFORMS)
            raise PathError(
                f"gates: transform is {shown(self.transform)}; it must be one of {allowed}"
            )
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise PathError(f"gates: the clamp's low {self.low} is not below high {self.high}")


@dataclass(frozen=True)
class SignalPath:
    """Names of the places that the signal passes, from the projector to the output head.

    The signal enters either by fusion (cross-attention beside the decoder: give ``fusion``) or by
    splicing (tokens in the text sequence: give ``splice``).

    Raises:
        PathError: parts are missing or contradict each other.
    """

    projector: str
    """Module that turns the encoded signal into tokens [B, N, H] (or [B, W], read as one token)."""
    layers: str
    """The decoder layers, with ``*`` in the place of their number."""
    signal: str = "audio"
    """What the signal is called in reports."""
    signal_input: str = "audio"
    """Keyword of the model's ``forward`` that holds the signal."""
    encoder: str | None = None
    """Module that encodes the signal, when it is part of the model."""
    scale: str | float | None = None
    """Attribute or parameter that bounds the projector's output (``tanh * scale``), or a number."""
    knobs: tuple[str, ...] = ()
    """Further attributes or parameters that are meant to change the signal's strength."""
    fusion: PerLayer | None = None
    """Module that fuses the signal at each fusion layer."""
    residual: PerLayer | None = None
    """Module called with (hidden, branch, ...) that returns the fused hidden states [B, T, H]."""
    branch: PerLayer | None = None
    """Module that returns the branch [B, T, H] before its gate, where there is no ``residual``."""
    gates: GatePath | None = None
    """The gates in front of the branches."""
    attention: PerLayer | None = None
    """Module that returns the attention weights [B, heads, T, N] over the signal's tokens."""
    text_embeddings: str | None = None
    """Module that embeds the text tokens."""
    head: str | None = None
    """Module that makes logits of the last hidden states."""
    outer_gate: str | Callable[[nn.Module], float] | None = None
    """Attribute (or function of the model) with the factor before all gates, warm-up included."""
    splice: int | Literal["prefix"] | None = None
    """Token id whose positions the signal replaces, or ``prefix`` when it precedes the text."""
    loss: Literal["mean", "sum"] = "mean"
    """Whether the model's own ``.loss`` is nats per supervised token or their sum."""

    def __post_init__(self) -> None:
        for name in PER_LAYER:
            if getattr(self, name) is not None:
                _check_per_layer(name, getattr(self, name))
        if self.layers.count("*") != 1:
            raise PathError(
                f"layers: {shown(self.layers)} must have one * in the place of the number"
            )
        if (self.fusion is None) == (self.splice is None):
            raise PathError("give either fusion (modules beside the decoder) or splice (token id)")
        if self.fusion is None and any(getattr(self, n) for n in (*PER_LAYER, "gates")):
            raise PathError("residual, branch, attention and gates belong to fusion, not to splice")
        if not (self.splice in (None, "prefix") or type(self.splice) is int):
            raise PathError(f"splice: must be a token id or 'prefix', got {shown(self.splice)}")
        if self.loss not in ("mean", "sum"):
            raise PathError(f"loss: must be 'mean' or 'sum', got {shown(self.loss)}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SignalPath":
        """The path with these keys; ``gates``: a name, or {name, clamp: [low, high], transform}.

        Raises:
            PathError: an unknown, missing or wrong key.
        """
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                allowed = ", ".join(known)
                raise PathError(
                    f"unknown key {shown(key)} in a signal path{did_you_mean(str(key), known)}; "
                    f"allowed: {allowed}"
                )
        for key in ("projector", "layers"):
            if not isinstance(data.get(key), str):
                raise PathError(f"a signal path needs {key!r}, the name of a module")
        for key in ("signal", "signal_input", "encoder", "text_embeddings", "head"):
            if not isinstance(data.get(key, ""), str | None):
                raise PathError(f"{key}: must be a name, got {shown(data[key])}")
        knobs = data.get("knobs", ())
        if not (isinstance(knobs, list | tuple) and all(isinstance(k, str) for k in knobs)):
            raise PathError(f"knobs: must be a list of names, got {shown(knobs)}")
        scale = data.get("scale")
        if isinstance(scale, bool) or not isinstance(scale, str | float | int | None):
            raise PathError(f"scale: must be a name or a number, got {shown(scale)}")
        values = {**data, "knobs": tuple(knobs)}
        if values.get("gates") is not None:
            values["gates"] = _gate_path(values["gates"])
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: Path | str) -> "SignalPath":
        """The path in a YAML file.

        Raises:
            PathError: the file is missing, not YAML, or not a signal path.
        """
        try:
            data = read_yaml(Path(path))
        except ConfigError as error:
            raise PathError(str(error)) from None
        if not isinstance(data, dict):
            raise PathError(f"{path} must hold keys and values, such as 'projector: model.proj'")
        return cls.from_dict(data)

    def resolve(self, model: nn.Module) -> "ResolvedPath":
        """Find everything in ``model``, which may be wrapped.

        Raises:
            PathError: a name matches nothing (near misses are listed), or the model cannot be
                measured.
        """
        from probes.resolved_path import resolve

        return resolve(self, model)


def _check_per_layer(what: str, value: Any) -> None:
    if isinstance(value, str):
        if "{layer}" not in value:
            raise PathError(
                f"{what}: {shown(value)} must have {{layer}} in the place of the layer's number, "
                "or be a mapping from decoder layer to name"
            )
    elif not (
        isinstance(value, Mapping)
        and all(type(layer) is int and isinstance(name, str) for layer, name in value.items())
    ):
        raise PathError(f"{what}: must be a name with {{layer}} or a mapping from layer to name")


def _gate_path(value: Any) -> GatePath:
    if isinstance(value, GatePath):
        return value
    if not isinstance(value, Mapping) or "name" not in value:
        return GatePath(value)
    unknown = set(value) - {"name", "clamp", "transform"}
    if unknown:
        raise PathError(
            f"gates: unknown key {shown(min(unknown, key=str))}; allowed: name, clamp, transform"
        )
    clamp = value.get("clamp", (None, None))
    if (
        not isinstance(clamp, list | tuple)
        or len(clamp) != 2
        or not all(isinstance(end, float | int | None) for end in clamp)
    ):
        raise PathError(f"gates: clamp must be [low, high], got {shown(clamp)}")
    return GatePath(value["name"], clamp[0], clamp[1], value.get("transform", "none"))
