"""Numbers in a model that set the strength of the signal: scales and gates."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probes.errors import PathError
from probes.names import buffers_by_name, find, modules_by_name, near_misses, parameters_by_name


@dataclass(frozen=True, eq=False)
class Knob:
    """A number, parameter or buffer that is an attribute of a module."""

    name: str
    """Its name in the model."""
    owner: nn.Module
    attribute: str

    @property
    def raw(self) -> float | Tensor:
        """The number or tensor as it is now."""
        value: float | Tensor = getattr(self.owner, self.attribute)
        return value

    @contextmanager
    def multiplied(self, factor: float) -> Iterator[None]:
        """Multiply the knob inside the ``with`` block; afterwards it is as before, bit for bit."""
        raw = self.raw
        if isinstance(raw, Tensor):
            before = raw.detach().clone()
            try:
                raw.data.mul_(factor)
                yield
            finally:
                raw.data.copy_(before)
        else:
            try:
                setattr(self.owner, self.attribute, raw * factor)
                yield
            finally:
                setattr(self.owner, self.attribute, raw)


@dataclass(frozen=True, eq=False)
class Gate:
    """The gate of one fusion layer."""

    layer: int
    name: str
    tensor: Tensor
    """The parameter or buffer; more than one element when each head has its own gate."""
    low: float | None
    high: float | None
    transform: str

    def values(self) -> Tensor:
        """float64 [elements] on the CPU: the factors before the branch, without the outer gate."""
        return self._apply(self.raw())

    def slope(self) -> Tensor:
        """float64 [elements]: derivative of :meth:`values` with respect to :meth:`raw`."""
        with torch.enable_grad():
            raw = self.raw().requires_grad_()
            (slope,) = torch.autograd.grad(self._apply(raw).sum(), raw)
        return slope

    def transformed(self) -> Tensor:
        """float64 [elements]: after the transform, before the clamp."""
        return self._transform(self.raw())

    def raw(self) -> Tensor:
        """float64 [elements] on the CPU: the stored values."""
        return self.tensor.detach().double().cpu().reshape(-1)

    def _transform(self, raw: Tensor) -> Tensor:
        return {"none": lambda x: x, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[self.transform](
            raw
        )

    def _apply(self, raw: Tensor) -> Tensor:
        value = self._transform(raw)
        return value if self.low is None and self.high is None else value.clamp(self.low, self.high)


def find_knob(model: nn.Module, name: str, what: str) -> Knob:
    """The knob called ``name``.

    Raises:
        PathError: there is none, or it is neither a number nor a tensor.
    """
    modules = modules_by_name(model)
    owner_name, _, attribute = name.rpartition(".")
    owner_name = find(owner_name, modules, what)
    owner = modules[owner_name]
    value = getattr(owner, attribute, None)
    if isinstance(value, bool) or not isinstance(value, float | int | Tensor):
        attributes = [f"{owner_name}.{k}" for k in (*vars(owner), *owner._parameters)]
        raise PathError(
            f"{what}: {name!r} is not a number, parameter or buffer of "
            f"{type(owner).__name__}{near_misses(name, attributes)}"
        )
    return Knob(f"{owner_name}.{attribute}".lstrip("."), owner, attribute)


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**buffers_by_name(model), **parameters_by_name(model)}


def outer_gate_value(model: nn.Module, name: str) -> float:
    """The number at the dotted attribute path ``name`` of the model, e.g. outer_gate.effective.

    Raises:
        PathError: there is no such attribute, or it is not one number.
    """
    value: object = model
    for attribute in name.split("."):
        if not hasattr(value, attribute):
            raise PathError(f"outer_gate: {type(value).__name__} has no attribute {attribute!r}")
        value = getattr(value, attribute)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = torch.Tensor.item(value.detach())
    if not isinstance(value, float | int):
        raise PathError(f"outer_gate: {name!r} is a {type(value).__name__}, not one number")
    return float(value)
