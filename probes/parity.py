"""Say whether a model that hears nothing is the bare backbone, bit for bit, also when it sees.

:func:`measure` compares on one batch with pictures what the influence probe compares on the others.
Its records are that probe's, with ``pictures_`` in front of the statistic: ``pictures_changed`` and
``pictures_max_change`` of ``signal:repeat``, ``pictures_parity_changed`` and
``pictures_parity_max_change`` of ``gate:zero`` and ``signal:none`` (share, logit).
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from probes.batch import Batch
from probes.context import Context
from probes.controls import may_lack_signal
from probes.logits import counted
from probes.record import Record
from probes.resolved_path import ResolvedPath
from probes.switch import FusionSwitch, can_be_zero, gates_at_zero
from probes.tally import Tally


def unheard(path: ResolvedPath, batch: Batch) -> Iterator[tuple[str, Batch]]:
    """The controls that must give the bare backbone, each with the batch to run.

    ``gate:zero`` stands only until the next is asked for; a control that the model has no way to
    is left out.
    """
    gates = path.gates
    if gates and all(can_be_zero(gate) for gate in gates.values()):
        with gates_at_zero(gates):
            yield "gate:zero", batch
    if may_lack_signal(path):
        yield "signal:none", batch.with_signal(None)


def measure(context: Context, pictures: Any) -> list[Record]:
    """Compare the outputs for pictures in eval mode, without gradients.

    Args:
        context: the model; its batches are not looked at.
        pictures: one batch in which the model sees pictures and hears a signal, as in ``Batch.of``.

    Returns:
        No records when the path names nothing by which the fusion could be switched off.

    Raises:
        ProbeError: it is no batch, or the model gives no logits for it.
    """
    batch = Batch.of(pictures, context.path.spec.signal_input)
    if not batch.supervised:
        batch = batch.with_inputs(labels=None)
    rows = context.rows("influence")
    with context.session() as session:
        switch = FusionSwitch(session, context.path)
        if not switch.layers:
            return []

        def logits(given: Batch) -> Tensor:
            return counted(session.forward(given), given, context.path.spec.splice).logits

        def compare(own: Tensor, other: Tensor, component: str, prefix: str) -> None:
            tally = Tally()
            tally.add(own, other)
            tally.report_change(rows, component, None, prefix)

        compare(logits(batch), logits(batch), "signal:repeat", "pictures_")
        with switch.off(*switch.layers):
            bare = logits(batch)
        for control, given in unheard(context.path, batch):
            compare(bare, logits(given), control, "pictures_parity_")
    return rows.records
