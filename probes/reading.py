"""Measuring a model at one setting of scale and gate."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from probes import magnitude
from probes.batch import Batch
from probes.context import Context
from probes.errors import ProbeError
from probes.logits import counted
from probes.loss import token_losses
from probes.norms import token_norms
from probes.proposal import Reading, Setting
from probes.record import RecordLog
from probes.resolved_path import ResolvedPath
from probes.session import Call, Session
from probes.snapshot import keep_values
from probes.statistics import TokenPool
from probes.switch import FusionSwitch


def read(context: Context, setting: Setting) -> Reading:
    """Measure all batches, in eval mode and without gradients.

    Args:
        context: a model with fusion, at this setting.
        setting: what its scale and gates are.

    Raises:
        ProbeError: no batches, no fusion, or an outer gate at 0.
    """
    path = context.path
    if not path.fusion or not path.gates:
        raise ProbeError("calibration needs a signal path with fusion layers and their gates")
    if path.outer_gate == 0:
        raise ProbeError(
            "the outer gate is 0, so nothing of the signal arrives: calibrate a model whose gate "
            "is open and whose gate warm-up is over"
        )
    log = RecordLog(magnitude.measure(context))
    nan = float("nan")
    contribution = {
        i: _or(log.value(component="fusion", statistic="contribution_median", layer=i), nan)
        for i in path.fusion
    }
    token_rms = _or(log.value(component="projector", statistic="rms_median", layer=None), nan)
    with context.session() as session:
        switch = FusionSwitch(session, path)
        loss, without = _loss(session, context), None
        if switch.layers:
            with switch.off(*switch.layers):
                without = _loss(session, context)
    return Reading(setting, contribution, token_rms, loss, without)


def norm_rms(context: Context) -> dict[int, float]:
    """Median RMS per element of what each fusion layer's own first norm makes of the real text.

    Frozen key and value weights were trained on inputs like these. Layers without a norm are
    left out. Measured on the bare backbone where the fusion can be switched off.
    """
    path = context.path
    with context.session() as session:
        switch = FusionSwitch(session, path)
        norms = {i: _Norm(session, path, i) for i in path.fusion}
        for batch in context.need_batches("calibrate"):
            for norm in norms.values():
                norm.batch = batch
            with switch.off(*switch.layers):
                session.forward(batch)
    found = {
        i: norm.pool.l2_median / norm.pool.width**0.5
        for i, norm in norms.items()
        if norm.pool.width
    }
    return {i: value for i, value in found.items() if value > 0}


class _Norm:
    """Looks at the first norm that runs in a decoder layer."""

    def __init__(self, session: Session, path: ResolvedPath, layer: int) -> None:
        self.path, self.pool, self.batch = path, TokenPool(), Batch({}, "")
        self._waiting = False
        session.watch_input(path.layers[layer], self._enter)
        for part in path.layers[layer].modules():
            if "norm" in type(part).__name__.lower():
                session.watch(part, self._look)

    def _enter(self, _call: Call) -> None:
        self._waiting = True

    def _look(self, call: Call) -> None:
        if self._waiting and call.result.dim() == 3:
            self._waiting = False
            text = self.batch.positions(call.result.shape, self.path.spec.splice).text
            self.pool.add(token_norms(call.result), np.flatnonzero(text.cpu().numpy()))


def _loss(session: Session, context: Context) -> float | None:
    """Mean over all supervised tokens, nats; None when there are none."""
    found = []
    for batch in context.batches:
        if batch.supervised:
            output = session.forward(batch)
            logits = counted(output, batch, context.path.spec.splice).logits
            found.append(token_losses(logits, batch).double().cpu().numpy())
    return float(np.concatenate(found).mean()) if found else None


@contextmanager
def adjusted(path: ResolvedPath, setting: Setting) -> Iterator[None]:
    """Give the model another scale and other gates inside the ``with`` block."""
    knob, gates = path.knobs[0], [gate.tensor for gate in path.gates.values()]
    raw = knob.raw
    restore = keep_values([*gates, *([raw] if isinstance(raw, Tensor) else [])])
    try:
        for gate in gates:
            gate.data.fill_(setting.gate_init)
        if isinstance(raw, Tensor):
            raw.data.fill_(setting.scale)
        else:
            setattr(knob.owner, knob.attribute, setting.scale)
        yield
    finally:
        restore()
        if not isinstance(raw, Tensor):
            setattr(knob.owner, knob.attribute, raw)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
