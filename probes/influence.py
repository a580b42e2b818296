"""Say whether the signal changes what the model says, where in the caption, through which layer.

Every control replaces the clip's own signal or closes its way in, and is compared with the output
that the own signal gave, at the supervised tokens (at all real text tokens when none is
supervised; then there are no losses). Controls are the component's detail:

- ``signal:swapped``: another clip's signal (``controls.swapped``); ``signal:silence``: zeros, or
  ``signal:silence_given``: the silence that was given; ``signal:noise``: seeded noise of the same
  RMS; ``signal:none``: the keyword left out, where ``forward`` allows it;
- ``gate:zero``: all gates at 0; ``fusion:off``: every fusion layer passes the hidden states on as
  they came, the bare backbone; ``fusion`` with a layer: only this layer left out.

Statistics of each: ``loss`` under the control and ``loss_change``, control minus own (nats/token;
above 0: the own signal helps), ``loss_change_error`` (its standard error over tokens),
``loss_change_first``, ``_middle``, ``_last`` (third of the caption); ``kl``, KL(own || control) of
the next-token distribution (nats/token); ``changed`` (share of logits that differ in any bit;
exactly 0: disconnected), ``max_change`` (largest absolute difference, logit), ``tokens``.

Further: ``signal:own`` ``loss``; ``signal:swapped`` ``distinct`` (share of texts whose new signal
differs; only these are compared); ``text:position<k>`` ``loss_change`` (swapped, k-th supervised
token of a caption from 0); ``signal:repeat`` ``changed`` and ``max_change`` (the same inputs
again: noise of the computation, 0 in a deterministic model); ``parity_changed`` and
``parity_max_change`` of ``signal:none`` and ``gate:zero`` against ``fusion:off`` (share, logit; 0
when a closed gate gives the bare backbone bit for bit; with pictures: ``probes.parity``).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probes.batch import Batch
from probes.context import Context
from probes.controls import Swapped, noisy, silent, swapped
from probes.logits import counted
from probes.loss import token_losses
from probes.norms import Floats
from probes.parity import unheard
from probes.record import Record, Rows
from probes.session import Session
from probes.switch import FusionSwitch
from probes.tally import Positions, Tally

Key = tuple[str, int | None]
"""Component and layer of a control."""
OFF: Key = ("fusion:off", None)
SWAPPED: Key = ("signal:swapped", None)
REPEAT: Key = ("signal:repeat", None)


def measure(context: Context, silence: Tensor | None = None) -> list[Record]:
    """Compare the outputs in eval mode, without gradients.

    Args:
        context: the model and its batches.
        silence: the signal of one silent clip; None for zeros.

    Raises:
        ProbeError: no batches, no logits in the output, or a silence of another shape.
    """
    found = [b if b.supervised else b.with_inputs(labels=None) for b in context.batches]
    context.need_batches("influence")
    rows = context.rows("influence")
    with context.session() as session:
        meter = _Meter(context, session, silence)
        for batch, other in zip(found, swapped(found), strict=True):
            meter.compare(batch, other)
        meter.report(rows)
    return rows.records


class _Output(NamedTuple):
    """What is kept of one forward pass until its batch is done."""

    logits: Tensor
    """[M, V] at the tokens that count."""
    text: Tensor
    """[M] the text that each belongs to."""
    losses: Floats | None
    """[M] nats; None without labels."""


class _Meter:
    """Runs the controls of a batch and keeps tallies."""

    def __init__(self, context: Context, session: Session, silence: Tensor | None) -> None:
        self.path, self.session, self.silence = context.path, session, silence
        self.switch = FusionSwitch(session, context.path)
        self.tallies: dict[Key, Tally] = {}
        self.parity: dict[Key, Tally] = {}
        self.own_losses: list[Floats] = []
        self.distinct: list[Tensor] = []

    def compare(self, batch: Batch, other: Swapped | None) -> None:
        """Run one batch under every control."""
        own = self._forward(batch)
        if own.losses is not None:
            self.own_losses.append(own.losses)
        all_tokens = np.ones(own.logits.shape[0], dtype=bool)
        self._tally(REPEAT, own, self._forward(batch), batch, all_tokens)
        if other is not None:
            self.distinct.append(other.distinct)
            chosen = other.distinct[own.text].numpy()
            self._tally(SWAPPED, own, self._forward(other.batch), batch, chosen)
        bare: _Output | None = None
        for key, output in self._closed(batch):
            bare = output if key == OFF else bare
            self._tally(key, own, output, batch, all_tokens)
            if bare is not None and key in (("signal:none", None), ("gate:zero", None)):
                self.parity.setdefault(key, Tally()).add(bare.logits, output.logits)

    def _closed(self, batch: Batch) -> Iterator[tuple[Key, _Output]]:
        """Outputs without the signal, the bare backbone first."""
        if self.switch.layers:
            with self.switch.off(*self.switch.layers):
                yield OFF, self._forward(batch)
        for layer in self.switch.layers:
            with self.switch.off(layer):
                yield ("fusion", layer), self._forward(batch)
        for control, given in unheard(self.path, batch):
            yield (control, None), self._forward(given)
        name = "signal:silence" if self.silence is None else "signal:silence_given"
        yield (name, None), self._forward(silent(batch, self.silence))
        noise = noisy(batch)
        if noise is not None:
            yield ("signal:noise", None), self._forward(noise)

    def _forward(self, batch: Batch) -> _Output:
        output = self.session.forward(batch)
        logits, text, _ = counted(output, batch, self.path.spec.splice)
        if batch.labels is None:
            return _Output(logits, text, None)
        losses = token_losses(logits, batch).double().cpu().numpy()
        return _Output(logits, text, losses)

    def _tally(
        self, key: Key, own: _Output, other: _Output, batch: Batch, chosen: np.ndarray
    ) -> None:
        tally = self.tallies.setdefault(key, Tally())
        mask = torch.from_numpy(chosen).to(own.logits.device)
        tally.add(own.logits[mask], other.logits[mask])
        if own.losses is not None and other.losses is not None and batch.labels is not None:
            tally.add_losses(own.losses, other.losses, Positions(batch.labels), chosen)

    def report(self, rows: Rows) -> None:
        """Write all records."""
        if self.own_losses:
            rows.add("signal:own", "loss", np.concatenate(self.own_losses).mean(), "nats/token")
        self.tallies.pop(REPEAT).report_change(rows, *REPEAT, "")
        if self.distinct:
            share = torch.cat(self.distinct).double().mean()
            rows.add("signal:swapped", "distinct", share, "share")
        for (component, layer), tally in self.tallies.items():
            tally.report(rows, component, layer)
        for (component, layer), tally in self.parity.items():
            tally.report_change(rows, component, layer, "parity_")
        if SWAPPED in self.tallies:
            self.tallies[SWAPPED].report_positions(rows)
