"""The places where a dial should show: signal tokens, branches, what arrives in the text."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from probes.batch import Batch
from probes.resolved_path import ResolvedPath
from probes.session import Call, Session
from probes.switch import FusionSwitch, residual_inputs

Place = tuple[str, int | None]
"""``tokens``, ``branch``, ``contribution`` or ``logits``, and the fusion layer."""


class SignalPlaces:
    """Collects the tokens at the places of the signal path during a forward pass.

    Args:
        session: the session whose hooks do it.
        path: where the places are.
        gate_layer: None for the places before the gates (``tokens``, ``branch``), or the layer
            whose ``contribution`` is wanted.
    """

    def __init__(self, session: Session, path: ResolvedPath, gate_layer: int | None) -> None:
        self.path, self.gate_layer = path, gate_layer
        self._seen: dict[Place, list[Tensor]] = {}
        self._switch: FusionSwitch | None = None
        self._without: tuple[Batch, Tensor] | None = None
        if gate_layer is None:
            session.watch(path.projector, self._tokens)
            for layer, module in path.residual.items():
                session.watch(module, partial(self._branch_given, layer))
            if not path.residual:
                for layer, module in path.branch.items():
                    session.watch(module, partial(self._branch_made, layer))
        elif path.residual:
            session.watch(path.residual[gate_layer], self._added)
        elif path.branch and (gate_layer + 1 in path.layers or path.head is not None):
            following = path.layers.get(gate_layer + 1, path.head)
            assert following is not None
            self._switch = FusionSwitch(session, path)
            session.watch_input(following, self._next)

    def forward(self, session: Session, batch: Batch) -> tuple[Any, dict[Place, Tensor]]:
        """The model's output, and the tokens [n, W] of each place that was passed."""
        place: Place = ("contribution", self.gate_layer)
        if self._switch is not None and (self._without is None or self._without[0] is not batch):
            with self._switch.off(*(() if self.gate_layer is None else (self.gate_layer,))):
                found = self._run(session, batch)[1]
            if place in found:
                self._without = (batch, found[place])
        output, found = self._run(session, batch)
        if self._switch is not None and self._without is not None and place in found:
            found[place] = _significant(found[place], self._without[1])
        return output, found

    def _run(self, session: Session, batch: Batch) -> tuple[Any, dict[Place, Tensor]]:
        self._seen, self._batch = {}, batch
        output = session.forward(batch)
        return output, {place: torch.cat(parts) for place, parts in self._seen.items()}

    def _keep(self, place: Place, tensor: Tensor) -> None:
        self._seen.setdefault(place, []).append(tensor.reshape(-1, tensor.shape[-1]))

    def _text(self, tensor: Tensor) -> Tensor:
        """The real text tokens [n, H]; a place of another shape counts as a whole."""
        if tensor.dim() != 3:
            return tensor
        text = self._batch.positions(tensor.shape, self.path.spec.splice).text
        return tensor[text.to(tensor.device)]

    def _tokens(self, call: Call) -> None:
        self._keep(("tokens", None), call.result)

    def _branch_given(self, layer: int, call: Call) -> None:
        self._keep(("branch", layer), self._text(residual_inputs(layer, call)[1]))

    def _branch_made(self, layer: int, call: Call) -> None:
        self._keep(("branch", layer), self._text(call.result))

    def _added(self, call: Call) -> None:
        assert self.gate_layer is not None
        hidden = self._text(residual_inputs(self.gate_layer, call)[0])
        self._keep(("contribution", self.gate_layer), _significant(self._text(call.result), hidden))

    def _next(self, call: Call) -> None:
        self._keep(("contribution", self.gate_layer), self._text(call.hidden))


def _significant(fused: Tensor, hidden: Tensor) -> Tensor:
    """``fused - hidden`` of tokens [n, H]; 0 where it is no more than rounding of the sum."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    gap = fused.to(hidden.device, wide) - hidden.to(wide)
    rounding = torch.finfo(hidden.dtype).eps * torch.linalg.vector_norm(hidden.to(wide), dim=-1)
    return gap * (~(torch.linalg.vector_norm(gap, dim=-1) <= rounding))[:, None]
