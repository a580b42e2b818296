"""Say for each scale and gate whether turning it changes anything, and what cancels it.

Every dial (``SignalPath.scale``, ``.knobs``, ``.gates``) is multiplied by :data:`FACTORS`, and the
signal is followed to the next places. Records of the dial (``projector:<name>`` or
``other:<name>``; ``gate`` with its layer):

- ``strength``: its value when measured (factor; 0.1 for a gate that stands at 0);
- ``strength_range``: the ratio by which it really varied (1: held fast by its clamp);
- ``elasticity_<place>``: d log ||place|| / d log strength, median over tokens (1: in proportion;
  0: cancelled), ``relative_change_<place>``: the larger ||new - old|| / ||old||, median over
  tokens. Places: ``tokens`` (the projector's output), ``branch`` (by fusion layer, before the
  gate), for a gate ``contribution`` (what its layer adds to the hidden states);
- ``relative_change_logits`` and ``changed_logits`` (share that differs in any bit).

Where a place does not follow although the place before it does, the module that follows the dial at
its input but not at its output is named: component ``projector:<Class> <name>``, ``gate:...`` or
``other:...``, with ``elasticity_before`` (about 1) and ``elasticity_after`` (about 0); ``<Class>``
is ``inside <Class>`` where the module's own code does it. Batch norms outside the decoder are
measured as they behave in training, all else in eval mode.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from probes.batch import Batch
from probes.cancel import find_cancelling
from probes.context import Context
from probes.controls import texts
from probes.dials import Dial, dials
from probes.logits import changes, counted
from probes.norms import Floats, token_norms
from probes.record import Record, Rows
from probes.session import Session
from probes.signal_places import Place, SignalPlaces

FACTORS = (0.6, 1.7)
"""Not powers of two: a dial that works through a normalisation leaves a trace of rounding, one that
is not connected at all leaves none."""
CANCELLED = 0.1
"""Elasticity up to which a place does not follow the dial."""


def measure(context: Context) -> list[Record]:
    """Turn every dial on every batch, without gradients.

    Raises:
        ProbeError: no batches, or no logits in the output.
    """
    batches = context.need_batches("sensitivity")
    rows = context.rows("sensitivity")
    for dial in dials(context.path):
        with dial.ready():
            response = _turn(context, dial, batches)
            response.report(rows, dial)
            for layer in response.cancelled():
                _name(rows, context, dial, batches[0], layer)
    return rows.records


def _turn(context: Context, dial: Dial, batches: tuple[Batch, ...]) -> "_Response":
    response = _Response(dial)
    with context.session() as session, trained_batch_norms(context, batches[0]):
        places = SignalPlaces(session, context.path, None if dial.gate is None else dial.layer)
        for batch in batches:
            before = _see(session, places, batch, context)
            seen = [before]
            for factor in FACTORS:
                with dial.knob.multiplied(factor):
                    response.strengths[factor] = dial.strength()
                    seen.append(_see(session, places, batch, context))
            response.add(seen)
    return response


def _see(
    session: Session, places: SignalPlaces, batch: Batch, context: Context
) -> dict[Place, Tensor]:
    """Tokens [n, W] of every place, and the logits."""
    output, found = places.forward(session, batch)
    return {**found, ("logits", None): counted(output, batch, context.path.spec.splice).logits}


class _Response:
    """How the places follow one dial, pooled over tokens of all batches."""

    def __init__(self, dial: Dial) -> None:
        self.strength = dial.strength()
        self.strengths: dict[float, float] = {}
        self._log_ratio: dict[Place, list[Floats]] = {}
        self._relative: dict[Place, list[list[Floats]]] = {}
        self._changed = self._logits = 0

    def add(self, seen: list[dict[Place, Tensor]]) -> None:
        """Add what was seen at the dial's own value and at each factor."""
        before, *turned = seen
        for place, old in before.items():
            new = [other[place] for other in turned if place in other]
            if any(x.shape != old.shape for x in new) or len(new) < len(FACTORS):
                continue
            size = token_norms(old).l2
            low, high = (token_norms(x).l2 for x in new)
            there, both = size != 0, (low != 0) & (high != 0)
            self._log_ratio.setdefault(place, []).append(np.log(high[both]) - np.log(low[both]))
            gaps = self._relative.setdefault(place, [[] for _ in FACTORS])
            for gap, x in zip(gaps, new, strict=True):
                gap.append(token_norms(_wide(x) - _wide(old)).l2[there] / size[there])
            if place[0] == "logits":
                self._changed += max(changes(old, x)[0] for x in new)
                self._logits += old.numel()

    def relative(self, place: Place) -> float | None:
        """The larger median relative change; None where there was nothing."""
        gaps = [np.concatenate(g) for g in self._relative.get(place, ())]
        return max((float(np.median(g)) for g in gaps if g.size), default=None)

    def elasticity(self, place: Place) -> float | None:
        """Median over tokens; None where there was nothing or the dial could not move."""
        ratios = np.concatenate(self._log_ratio.get(place, [np.empty(0)]))
        if not ratios.size or self.range is None or self.range == 1:
            return None
        return float(np.median(ratios) / np.log(self.range))

    @property
    def range(self) -> float | None:
        """Highest strength over lowest; None when it was 0."""
        low, high = (self.strengths[f] for f in FACTORS)
        return high / low if low > 0 else None

    def report(self, rows: Rows, dial: Dial) -> None:
        """Write all records of the dial."""
        rows.add(dial.component, "strength", self.strength, "factor", dial.layer)
        if self.range is not None:
            rows.add(dial.component, "strength_range", self.range, "ratio", dial.layer)
        for place in self._relative:
            name, layer = place[0], dial.layer if place[1] is None else place[1]
            relative, elasticity = self.relative(place), self.elasticity(place)
            if elasticity is not None and name != "logits":
                rows.add(dial.component, f"elasticity_{name}", elasticity, "ratio", layer)
            if relative is not None:
                rows.add(dial.component, f"relative_change_{name}", relative, "ratio", layer)
        if self._logits:
            share = self._changed / self._logits
            rows.add(dial.component, "changed_logits", share, "share", dial.layer)

    def cancelled(self) -> list[int | None]:
        """Layers (None: the projector's tokens) where the dial is first cancelled.

        Not where it is not connected at all, and not behind tokens that do not follow already.
        """
        found: list[int | None] = []
        for place in sorted(self._relative, key=lambda p: p[0] != "tokens"):
            elasticity, relative = self.elasticity(place), self.relative(place)
            if place[0] == "logits" or elasticity is None or not relative:
                continue
            if abs(elasticity) <= CANCELLED and None not in found:
                found.append(place[1])
        return found


def _name(rows: Rows, context: Context, dial: Dial, batch: Batch, layer: int | None) -> None:
    with context.session() as session, trained_batch_norms(context, batch):
        found = find_cancelling(session, context.path, dial, batch, layer)
    if found is None:
        return
    component = f"{dial.component.partition(':')[0]}:{found.what}"
    if found.before is not None:
        rows.add(component, "elasticity_before", found.before, "ratio", layer)
    rows.add(component, "elasticity_after", found.after, "ratio", layer)


@contextmanager
def trained_batch_norms(context: Context, batch: Batch) -> Iterator[None]:
    """Let batch norms on the signal path use the batch's statistics, as while the adapter learns.

    The session puts their flags and running statistics back. A batch of one has no statistics.
    """
    path = context.path
    frozen = {
        id(m) for part in (*path.layers.values(), path.encoder) if part for m in part.modules()
    }
    for module in path.model.modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch_norm and id(module) not in frozen and texts(batch) > 1:
            module.training = True
    yield


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
