"""Say whether something changes the output that must not: others' clips, padding, later tokens.

One input is exchanged, and only outputs that must not depend on it are compared (eval mode, no
gradients, the first batch with several texts; at the tokens that ``influence`` compares).

- ``signal:replaced``: outputs of texts that got another text's clip; ``signal:others``: outputs of
  the texts beside them, which kept their own. Which texts are replaced is told by the bits of
  their number, so that each pair of texts is told apart once in each direction.
- ``text:padding``: padding has other ids (where the batch has padding).
- ``text:later``: from the middle supervised token on every id is another; outputs before it.
- ``text`` ``unheard_front``: how many of a text's first real tokens can be exchanged without
  changing any bit of a later output (mean; 0 is usual). None when not even the fourth is heard.

Statistics: ``kl``, KL(own || changed) of the next-token distribution (nats/token); ``changed``
(share of logits that differ in any bit); ``max_change`` (logit); ``tokens``. ``signal:repeat``
``kl``: the same inputs again, noise of the computation.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from probes.batch import Batch
from probes.context import Context
from probes.controls import texts
from probes.logits import Counted, counted
from probes.record import Record, Rows
from probes.session import Session
from probes.tally import Tally

FRONT = 4
"""First tokens of a text that are exchanged one after the other."""


def measure(context: Context) -> list[Record]:
    """Compare outputs that should be independent.

    Raises:
        ProbeError: no batches, or no logits in the output.
    """
    rows = context.rows("independence")
    batches = context.need_batches("independence")
    batch = next((b for b in batches if texts(b) > 1), batches[0])
    if not batch.supervised:
        batch = batch.with_inputs(labels=None)
    with context.session() as session:
        meter = _Meter(context, session, batch)
        meter.clips()
        meter.text()
        meter.report(rows)
    return rows.records


class _Meter:
    """Runs the exchanges of one batch and keeps tallies."""

    def __init__(self, context: Context, session: Session, batch: Batch) -> None:
        self.splice, self.session, self.batch = context.path.spec.splice, session, batch
        self.own = self._run(batch)
        self.tallies: dict[str, Tally] = {}
        self.unheard_front: float | None = None
        self._compare("signal:repeat", batch)

    def clips(self) -> None:
        """Give some texts the clips of the others."""
        for signal, replaced in exchanged(self.batch):
            output = self._run(self.batch.with_signal(signal))
            mine = replaced[self.own.text]
            self._add("signal:replaced", output, mine)
            self._add("signal:others", output, ~mine)

    def text(self) -> None:
        """Give padding, later tokens and first tokens other ids."""
        ids = self.batch.inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            return
        real, padding = self._real(ids)
        words = ids[real].unique()
        if words.numel() < 2:
            return
        other = torch.where(ids == words[0], words[1], words[0])
        if padding.any():
            self._compare("text:padding", self._with(ids, other, padding))
        later = real & (torch.arange(ids.shape[1], device=ids.device) >= self._middle()[:, None])
        place = self._middle().cpu()[self.own.text]
        self._compare("text:later", self._with(ids, other, later), self.own.position < place)
        self.unheard_front = self._front(ids, other, real)

    def _real(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] bool each: text that may be exchanged, and padding."""
        mask = self.batch.inputs.get("attention_mask")
        whole = torch.ones_like(ids, dtype=torch.bool)
        kept = whole if mask is None or mask.dim() != 2 else mask.bool().to(ids.device)
        # no placeholder may come or go: the model counts them
        words = ids != self.splice if isinstance(self.splice, int) else whole
        return kept & words, ~kept & words

    def _middle(self) -> Tensor:
        """[B] place of the token that the middle of each text's outputs predicts."""
        found = []
        for row in range(texts(self.batch)):
            places = self.own.position[self.own.text == row]
            found.append(int(places[len(places) // 2]) + 1 if len(places) else 2**31)
        ids: Tensor = self.batch.inputs["input_ids"]
        return torch.tensor(found, device=ids.device)

    def _front(self, ids: Tensor, other: Tensor, real: Tensor) -> float | None:
        """How many first tokens of each text are not heard; None when none of them is."""
        order = real.long().cumsum(1)
        unheard: dict[int, int] = {}
        waiting = set(self.own.text.tolist())
        for number in range(FRONT):
            chosen = real & (order == number + 1)
            output = self._run(self._with(ids, other, chosen))
            place = torch.where(chosen.any(1), chosen.long().argmax(1), 2**31).cpu()
            differs = (output.logits != self.own.logits).any(1).cpu()
            after = self.own.position > place[self.own.text]
            heard = set(self.own.text[differs & after].tolist()) & waiting
            unheard |= dict.fromkeys(heard, number)
            waiting -= heard
            if not waiting:
                break
        return sum(unheard.values()) / len(unheard) if unheard else None

    def _with(self, ids: Tensor, other: Tensor, where: Tensor) -> Batch:
        return self.batch.with_inputs(input_ids=torch.where(where, other, ids))

    def _run(self, batch: Batch) -> Counted:
        return counted(self.session.forward(batch), batch, self.splice)

    def _compare(self, name: str, changed: Batch, chosen: Tensor | None = None) -> None:
        everything = torch.ones_like(self.own.text, dtype=torch.bool)
        self._add(name, self._run(changed), everything if chosen is None else chosen)

    def _add(self, name: str, output: Counted, chosen: Tensor) -> None:
        chosen = chosen.to(self.own.logits.device)
        tally = self.tallies.setdefault(name, Tally())
        tally.add(self.own.logits[chosen], output.logits[chosen])

    def report(self, rows: Rows) -> None:
        """Write all records."""
        for name, tally in self.tallies.items():
            tally.report(rows, name)
        if self.unheard_front is not None:
            rows.add("text", "unheard_front", self.unheard_front, "tokens")


def exchanged(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Signals in which some texts have the clip of a text that keeps its own, and which [B] bool.

    For each bit of the texts' numbers the texts that have it are replaced, then those that do not.
    Nothing when the batch has one text, or the signal does not have one row per text.
    """
    signal, count = batch.signal, texts(batch)
    if signal.shape[:1] != (count,):
        return
    number = torch.arange(count)
    for bit in range((count - 1).bit_length()):
        has = (number >> bit & 1).bool()
        for replaced in (has, ~has):
            kept = number[~replaced]
            donors = torch.where(replaced, kept[number % len(kept)], number)
            yield signal[donors.to(signal.device)], replaced
