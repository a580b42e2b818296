"""Why has a parameter no gradient? Open closed gates, fill zero weights, and look again.

Zeros that have a gradient themselves will move by themselves: what they wake has a normal cold
start. What wakes only when zeros without a gradient are moved too waits for ever, and so does what
needs frozen weights of zero to be filled. What nothing wakes is cut off from the loss.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from probes.knobs import Gate
from probes.ledger import Reason
from probes.resolved_path import ResolvedPath
from probes.session import Session

EPSILON = 0.01
"""Value of an opened gate, and standard deviation of filled weights."""


@dataclass(eq=False)
class ColdStart:
    """The experiment on one model.

    Args:
        path: gives the gates.
        session: puts the changed values back when it ends.
        trainable: parameters that may have a gradient.
        frozen: parameters of the signal path that get none because they need none.
        awake: ``id`` of those that have one which is not zero.
        backward: runs backward now; returns the ``id`` of every parameter with such a gradient.
    """

    path: ResolvedPath
    session: Session
    trainable: Iterable[nn.Parameter]
    frozen: Iterable[nn.Parameter]
    awake: set[int]
    backward: Callable[[], set[int]]
    reasons: dict[int, Reason] = field(default_factory=dict)

    def explain(self, asleep: Iterable[int]) -> dict[int, Reason]:
        """The reason of each parameter (by ``id``) whose gradient is exactly zero."""
        self.asleep = set(asleep)
        gates = [g for g in self.path.gates.values() if not g.values().any()]
        self.gates = {id(g.tensor): g for g in gates}
        self.weights = {
            id(p): p for p in self.trainable if id(p) not in self.gates and not p.detach().any()
        }
        frozen_zeros = {
            id(p): p for p in self.frozen if id(p) not in self.gates and not p.detach().any()
        }
        self._follow_movers(None)
        frozen = [key for key, gate in self.gates.items() if not gate.tensor.requires_grad]
        if self._change(frozen, Reason.FROZEN_GATE):
            self._follow_movers(Reason.FROZEN_GATE)
        self._change([*self.gates, *self.weights], Reason.DEADLOCK)
        self.weights = frozen_zeros
        self._change(list(frozen_zeros), Reason.FROZEN_ZERO)
        return self.reasons | dict.fromkeys(self.asleep, Reason.UNKNOWN)

    def _follow_movers(self, reason: Reason | None) -> None:
        """Move the zeros that have a gradient, gates first, until that wakes no further ones."""
        while self.asleep:
            gates = [key for key in self.gates if key in self.awake]
            weights = [key for key in self.weights if key in self.awake]
            if not gates and not weights:
                return
            own = Reason.GATE if gates else Reason.ZERO_WEIGHT
            self._change(gates or weights, reason or own)

    def _change(self, keys: list[int], reason: Reason) -> bool:
        """Make these zeros nonzero, and note what wakes; False when there is nothing to do."""
        if not keys or not self.asleep:
            return False
        for key in keys:
            gate, weight = self.gates.pop(key, None), self.weights.pop(key, None)
            if gate is not None:
                self.session.keep_values([gate.tensor])
                gate.tensor.data.fill_(_slightly_open(gate))
            elif weight is not None:
                self.session.keep_values([weight])
                weight.data.copy_(_noise(weight))
        woken = self.backward() & self.asleep
        self.reasons |= dict.fromkeys(woken, reason)
        self.asleep -= woken
        self.awake |= woken
        return True


def _slightly_open(gate: Gate) -> float:
    """A raw value inside the clamp that lets a little through."""
    return 0.0 if gate.transform == "sigmoid" else max(gate.low or 0.0, 0.0) + EPSILON


def _noise(like: Tensor) -> Tensor:
    """The same numbers whatever the state of the random generators."""
    generator = torch.Generator().manual_seed(like.numel())
    return torch.randn(like.shape, generator=generator) * EPSILON
