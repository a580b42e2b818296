"""Switching fusion layers off inside a session, by hooks or by their gates."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probes.errors import ProbeError
from probes.knobs import Gate
from probes.resolved_path import ResolvedPath
from probes.session import Call, Session
from probes.snapshot import keep_values


class FusionSwitch:
    """Lets chosen fusion layers pass the hidden states on as they came.

    Where the path names ``residual``, this returns the hidden states it was called with; where it
    names ``branch``, the branch is zero. With neither, nothing can be switched (:attr:`layers` is
    empty).

    Args:
        session: the session whose hooks do it.
        path: where the fusion is.
    """

    def __init__(self, session: Session, path: ResolvedPath) -> None:
        self._off: frozenset[int] = frozenset()
        places, change = (path.residual, _unfused) if path.residual else (path.branch, _silent)
        self.layers = tuple(places)
        """Fusion layers that can be switched off."""
        for layer, module in places.items():
            session.replace_output(module, partial(self._pass, layer, change))

    @contextmanager
    def off(self, *layers: int) -> Iterator[None]:
        """Switch these layers off inside the ``with`` block."""
        before, self._off = self._off, frozenset(layers)
        try:
            yield
        finally:
            self._off = before

    def _pass(self, layer: int, change: Any, call: Call) -> Any:
        return change(layer, call) if layer in self._off else call.output


def _unfused(layer: int, call: Call) -> Any:
    return _with_tensor(call.output, residual_inputs(layer, call)[0])


def _silent(_layer: int, call: Call) -> Any:
    return _with_tensor(call.output, torch.zeros_like(call.result))


def residual_inputs(layer: int, call: Call) -> tuple[Tensor, Tensor]:
    """The hidden states and the branch that the residual of ``layer`` was called with.

    Raises:
        ProbeError: it was called with something else.
    """
    given = [t for t in call.tensors if t.shape == call.result.shape]
    if call.result.dim() != 3 or len(given) < 2:
        shapes = ", ".join(str(list(t.shape)) for t in call.tensors)
        raise ProbeError(
            f"the residual of layer {layer} must be called with hidden and branch of the shape "
            f"that it returns, {list(call.result.shape)}; it was called with {shapes}"
        )
    return given[0], given[1]


def _with_tensor(output: Any, tensor: Tensor) -> Any:
    """The output with its (first) tensor replaced."""
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    return [tensor, *output[1:]] if isinstance(output, list) else tensor


def can_be_zero(gate: Gate) -> bool:
    """Whether some stored value makes the gate's factor exactly 0, namely 0."""
    low, high = gate.low, gate.high
    return gate.transform != "sigmoid" and (low is None or low <= 0) and (high is None or high >= 0)


@contextmanager
def gates_at_zero(gates: dict[int, Gate]) -> Iterator[None]:
    """Set all gates to 0 inside the ``with`` block; afterwards they are as before, bit for bit."""
    tensors = [gate.tensor for gate in gates.values()]
    restore = keep_values(tensors)
    try:
        for tensor in tensors:
            tensor.data.zero_()
        yield
    finally:
        restore()
