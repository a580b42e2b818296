"""Say whether ``generate()`` hears the clips that ``forward()`` hears: greedily and with two beams.

A few texts of the first batch that suffices are continued from their prompts (left-padded), once
greedily and once by beam search. Every next-token distribution that led to the result is compared
with the one that ``forward`` gives for the same tokens, alone, without padding and cache. Tokens
are not compared: where two of them are equally likely, rounding may choose either.

Components ``generate:greedy`` and ``generate:beams``: ``kl``, KL(forward || generate) per step
(nats/token); ``other_clip``, share of the steps whose distribution is nearer to what ``forward``
says of another text's clip; ``tokens``, steps compared; ``failed`` 1 when beam search raises an
error although greedy search works. ``generate:swapped`` ``kl``, KL(forward || forward with another
clip) at the same steps, so how much hearing the wrong clip matters; ``generate:rounding`` ``kl``,
noise of the computation: the larger of KL(forward || forward in a padded batch), and KL(forward ||
forward where all that leaves a decoder layer, and every logit, is one unit of the last place off),
per step. A batch may be computed in the very order of a text alone, where a cache is not: then only
the second tells how far rounding carries in this model.

A model without a ``generate`` that takes the inputs of ``forward`` and transformers'
``output_logits`` and ``return_dict_in_generate`` is not measured: there are no records.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probes.batch import IGNORED, Batch
from probes.context import Context
from probes.controls import texts
from probes.data import special_tokens
from probes.logits import divergence
from probes.loss import field_of
from probes.record import Record
from probes.session import Call, Session

TEXTS, STEPS, BEAMS = 3, 6, 2
_OWN_WORDS = ("input_ids", "attention_mask", "labels", "position_ids", "token_type_ids")


def measure(context: Context) -> list[Record]:
    """Continue a few prompts, in eval mode and without gradients.

    Raises:
        ProbeError: there are no batches.
    """
    rows = context.rows("generation")
    found = [_prompts(b, context) for b in context.need_batches("generation")]
    prompts = next((p for p in found if p is not None), None)
    if prompts is None or not callable(getattr(context.path.model, "generate", None)):
        return []
    with context.session() as session:
        pad = special_tokens(context.path.model).pad or 0
        hearing = _Hearing(session, prompts, pad, context.path.spec.splice)
        greedy = hearing.generate(1)
        if greedy is None:
            return []
        found_beams = hearing.generate(BEAMS)
        swapped, beside, shaken = [], [], []
        for name, result in (("generate:greedy", greedy), ("generate:beams", found_beams)):
            if result is None:
                rows.add(name, "failed", 1, "flag")
                continue
            heard = [hearing.compare(row, result) for row in range(len(prompts.ids))]
            rows.add(name, "kl", _mean([h.own for h in heard]), "nats/token")
            nearer = torch.cat([(h.others.amin(0) < h.own).double() for h in heard])
            rows.add(name, "other_clip", nearer.mean(), "share")
            rows.add(name, "tokens", len(nearer), "tokens")
            swapped += [h.swapped.flatten() for h in heard]
            beside += hearing.beside(result)
            shaken += hearing.shaken(result, context)
        rows.add("generate:swapped", "kl", _mean(swapped), "nats/token")
        rounding = max(_mean(beside), _mean(shaken))
        rows.add("generate:rounding", "kl", rounding, "nats/token")
    return rows.records


class _Prompts(NamedTuple):
    """What is continued."""

    ids: list[Tensor]
    """Prompt [T_i] of each text, without padding."""
    rest: Batch
    """The other inputs of these texts."""


class _Result(NamedTuple):
    """What one search said."""

    new: Tensor
    """[B, S] chosen tokens."""
    logits: list[Tensor]
    """[S, V] of each text, those that led to its tokens."""


class _Heard(NamedTuple):
    """Distances of one text's steps, [S] float64 nats."""

    own: Tensor
    """From ``forward`` with the own clip."""
    others: Tensor
    """[B - 1, S] from ``forward`` with each other clip."""
    swapped: Tensor
    """[B - 1, S] between the two."""


class _Hearing:
    """Generates, and asks ``forward`` about the same tokens."""

    def __init__(
        self, session: Session, prompts: _Prompts, pad: int, splice: int | str | None
    ) -> None:
        self.session, self.prompts, self.pad = session, prompts, pad
        self.placeholder = splice if isinstance(splice, int) else None

    def generate(self, beams: int) -> _Result | None:
        """The result of a search, or None when it fails or does not tell its logits."""
        ids, mask = self._padded(self.prompts.ids, left=True)
        batch = self.prompts.rest.with_inputs(input_ids=ids, attention_mask=mask)
        # a placeholder too many, and forward() refuses the text that generate() wrote
        forbidden = {} if self.placeholder is None else {"suppress_tokens": [self.placeholder]}
        try:
            output = self.session.generate(
                batch, num_beams=beams, do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS,
                output_logits=True, return_dict_in_generate=True, pad_token_id=self.pad,
                **forbidden,
            )  # fmt: skip
        except Exception:  # the model's own code; what it cannot do is not measured
            return None
        result = _read(output, ids, beams)
        if result is not None and self.placeholder in result.new.unique().tolist():
            return None
        return result

    def compare(self, row: int, result: _Result) -> _Heard:
        """The distances of one text."""
        tokens = torch.cat([self.prompts.ids[row], result.new[row, :-1]])
        said = [self._forward(tokens, row, clip) for clip in self._clips(row)]
        heard = result.logits[row]
        away = [divergence(other, heard) for other in said]
        between = [divergence(said[0], other) for other in said[1:]]
        return _Heard(away[0], torch.stack(away[1:]), torch.stack(between))

    def beside(self, result: _Result) -> list[Tensor]:
        """[S] of each text: KL between ``forward`` alone and beside the others, right-padded."""
        whole = self._whole(result)
        ids, mask = self._padded(whole, left=False)
        batch = self.prompts.rest.with_inputs(input_ids=ids, attention_mask=mask)
        logits = _logits(self.session.forward(batch))[:, -ids.shape[1] :]
        return [
            divergence(self._forward(tokens, row, row), logits[row, : len(tokens)][-STEPS:])
            for row, tokens in enumerate(whole)
        ]

    def shaken(self, result: _Result, context: Context) -> list[Tensor]:
        """[S] of each text: KL between ``forward`` and ``forward`` with more rounding."""
        whole = list(enumerate(self._whole(result)))
        still = [self._forward(tokens, row, row) for row, tokens in whole]
        least = torch.finfo(still[0].dtype).eps  # autocast's products, added to wider states
        with context.session() as session:
            for index, layer in context.path.layers.items():
                session.replace_output(layer, partial(_shake, least, index % 2))
            shaking = _Hearing(session, self.prompts, self.pad, self.placeholder)
            moved = [_one_unit_off(shaking._forward(tokens, row, row)) for row, tokens in whole]
        return [divergence(own, other) for own, other in zip(still, moved, strict=True)]

    def _whole(self, result: _Result) -> list[Tensor]:
        """Each text with all that was said but the last token, to which no step listened."""
        pairs = zip(self.prompts.ids, result.new, strict=True)
        return [torch.cat([prompt, new[:-1]]) for prompt, new in pairs]

    def _clips(self, row: int) -> list[int]:
        """Own clip first."""
        return [row, *(i for i in range(len(self.prompts.ids)) if i != row)]

    def _forward(self, tokens: Tensor, row: int, clip: int) -> Tensor:
        """[S, V] logits of the last steps of one text, with this clip."""
        rest = self.prompts.rest.rows([row])
        alone = rest.with_signal(self.prompts.rest.rows([clip]).signal)
        ids = tokens[None]
        batch = alone.with_inputs(input_ids=ids, attention_mask=torch.ones_like(ids))
        return _logits(self.session.forward(batch))[0, -STEPS:]

    def _padded(self, texts: list[Tensor], *, left: bool) -> tuple[Tensor, Tensor]:
        """[B, T] ids and mask."""
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), self.pad, device=texts[0].device)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            place = slice(width - len(text), width) if left else slice(0, len(text))
            ids[row, place], mask[row, place] = text, 1
        return ids, mask


def _prompts(batch: Batch, context: Context) -> _Prompts | None:
    """The first texts of a batch with different clips; None when it does not have two of them."""
    ids, mask = batch.inputs.get("input_ids"), batch.inputs.get("attention_mask")
    signal, count = batch.signal, texts(batch)
    if not isinstance(ids, Tensor) or ids.dim() != 2 or signal.shape[:1] != (count,):
        return None
    chosen: list[int] = []
    found = []
    for row in range(count):
        real = mask[row].bool() if isinstance(mask, Tensor) else torch.ones_like(ids[row]).bool()
        prompt = ids[row][real & _before(batch, row, context.path.spec.splice)]
        alike = any(torch.equal(signal[row], signal[other]) for other in chosen)
        if len(prompt) and not alike and len(chosen) < TEXTS:
            chosen.append(row)
            found.append(prompt)
    if len(chosen) < 2:
        return None
    here = (p.device for p in context.path.model.parameters() if not p.is_meta)
    device = next(here, ids.device)
    rest = batch.rows(chosen).with_inputs(**dict.fromkeys(_OWN_WORDS))
    return _Prompts([prompt.to(device) for prompt in found], rest)


def _before(batch: Batch, row: int, splice: int | str | None) -> Tensor:
    """[T] bool: what comes before the first label, and at least all placeholders of the signal."""
    ids = batch.inputs["input_ids"][row]
    whole = torch.ones_like(ids, dtype=torch.bool)
    if batch.labels is None:
        return whole
    prompt = (batch.labels[row].to(ids.device) != IGNORED).cumsum(0) == 0
    if isinstance(splice, int):
        prompt |= (ids == splice).flip(0).cumsum(0).flip(0) > 0
    return prompt


def _read(output: Any, ids: Tensor, beams: int) -> _Result | None:
    """Tokens and logits of a transformers' output; None when it is something else."""
    sequences, steps = field_of(output, "sequences"), field_of(output, "logits")
    count, width = ids.shape
    told = isinstance(sequences, Tensor) and isinstance(steps, tuple) and len(steps) == STEPS
    if not told or sequences.shape != (count, width + STEPS):
        return None
    if not torch.equal(sequences[:, :width], ids):
        return None
    if any(step.shape[:1] != (count * beams,) or step.dim() != 2 for step in steps):
        return None
    indices = field_of(output, "beam_indices")
    own = torch.arange(count, device=ids.device)[:, None].expand(count, STEPS)
    came = own if beams == 1 else indices
    if not isinstance(came, Tensor) or came.shape[1] < STEPS or (came[:, :STEPS] < 0).any():
        return None
    logits = [torch.stack([steps[s][came[row, s]] for s in range(STEPS)]) for row in range(count)]
    return _Result(sequences[:, width:], logits)


def _one_unit_off(exact: Tensor, least: float = 0.0, first: int = 0) -> Tensor:
    """[..., N] moved by one unit of the last place, or ``least`` of it; every other one down.

    The first goes up, or down when ``first`` is 1.
    """
    sign = 1.0 - 2.0 * ((torch.arange(exact.shape[-1], device=exact.device) + first) % 2)
    unit = max(torch.finfo(exact.dtype).eps, least)
    wide = exact.double()
    return wide + wide.abs() * unit * sign


def _shake(least: float, odd: int, call: Call) -> Any:
    """What a decoder layer returns, its hidden states moved as by rounding.

    The signs of neighbouring layers differ: rounding does not push the same way all the way down.
    """
    output = call.output
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor):
        return output
    moved = _one_unit_off(hidden, least, odd).to(hidden.dtype)
    return (moved, *output[1:]) if isinstance(output, tuple) else moved


def _logits(output: Any) -> Tensor:
    """[B, T, V]."""
    found = output if isinstance(output, Tensor) else field_of(output, "logits")
    assert isinstance(found, Tensor)
    return found


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).mean())
