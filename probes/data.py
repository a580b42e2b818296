"""Say whether the batches can teach anything: labels, padding, captions, clips.

Everything is read from the batches; one forward pass per batch, without gradients, shows what
enters and leaves the projector. Shares are pooled over all batches.

Component ``text``:

- ``batches``, ``rows``; ``supervised_mean``, ``supervised_min`` (tokens per batch that a loss is
  taken on); ``batches_all_ignored``, ``rows_all_ignored``, shares without any label.
- ``first_supervised`` (median over rows), ``first_supervised_min``: real text tokens before the
  first label, so the length of the prompt; ``rows_fully_supervised``, share of rows whose every
  real token has a label; ``shared_prefix``, tokens with which all rows begin (prompt, and chance);
  ``shared_prefix_supervised``, share of them that is supervised; ``signal_supervised`` and
  ``signal_masked``, shares of the signal's placeholders with a label, and with attention mask 0.
- ``agreement_same``: share of labels that equal the input id at their position (1 in the usual
  convention, where the model shifts); ``agreement_next``, ``agreement_previous``: that equal the
  next, the previous input id (1 means labels shifted once too often).
- ``ends_with_eos``, share of supervised rows whose last label's token is the end of text, when the
  model knows its id (0 for truncated captions).
- ``padding``, share of positions; ``left_padded``, ``right_padded``, ``both_sides_padded`` (left
  and right of the same text), shares of the padded rows;
  ``rows_all_masked``, rows with attention mask 0 throughout; ``supervised_masked``, share of labels
  where the mask is 0; and when the model knows the id of padding ``supervised_padding``, share of
  labels on it, and ``padding_attended``, share of it where the mask is 1.

Component ``signal`` (as in the batch), and ``encoder`` (what enters the projector, when an encoder
is part of the model):

- ``clips``; ``nonfinite``, share with NaN or infinity; ``silent``, share of all zeros;
  ``identical``, share that another clip of their batch equals bit for bit; ``distinct``, different
  clips of all batches / clips; ``one_clip_batches``, share of the batches with several clips, not
  all silent, whose clips are one; ``l2_median``, ``l2_min`` of a clip.
- ``cosine_between_clips``, mean over pairs; ``variation``, sqrt(1 - ||mean||^2 / mean ||clip||^2):
  0 when every clip is the same, 1 when they have nothing in common.
- ``same_text_other_signal`` (``signal`` only): share of captions that also occur with other clips.

Component ``signal`` further: ``tokens``, the projector's tokens per clip (mean, ``tokens_min``,
``tokens_max``); with a placeholder id ``placeholders`` per text (mean), and ``token_mismatch``,
share of batches with another number of placeholders than tokens. Component ``model``: ``refused``,
share of batches that the model refused by an error of its own kind (it checks its input).
"""

from typing import Any

import numpy as np
from torch import nn

from configs.errors import SafeError
from probes.batch import IGNORED, Batch
from probes.context import Context
from probes.errors import ProbeError
from probes.names import modules_by_name
from probes.record import Record, Rows
from probes.session import Call
from probes.signal_statistics import SignalStatistics, Text
from probes.text_statistics import SpecialTokens, TextStatistics


def measure(context: Context) -> list[Record]:
    """Look at all batches.

    Raises:
        ProbeError: there are none.
    """
    rows = context.rows("data")
    batches = context.need_batches("data")
    splice = context.path.spec.splice
    placeholder = splice if isinstance(splice, int) else None
    text = TextStatistics(special_tokens(context.path.model), placeholder)
    signal = SignalStatistics()
    for batch in batches:
        text.add(batch)
        captions = _captions(batch)
        paired = captions is not None and len(captions) == len(batch.signal)
        signal.add(batch.signal, captions if paired else None)
    text.report(rows)
    signal.report(rows, "signal")
    _pass(rows, context, placeholder)
    return rows.records


def special_tokens(model: nn.Module) -> SpecialTokens:
    """Ids of end and padding, from a tokenizer, generation config or config inside the model.

    Without an id of its own, padding is taken to be the end of text.
    """
    modules = list(modules_by_name(model).values())
    for kind in ("tokenizer", "generation_config", "config"):
        for module in modules:
            owner: Any = getattr(module, kind, None)
            owner = getattr(owner, "text_config", None) or owner
            eos = getattr(owner, "eos_token_id", None)
            if isinstance(eos, int | list | tuple):
                ends = frozenset([eos] if isinstance(eos, int) else eos)
                pad = getattr(owner, "pad_token_id", None)
                alone = next(iter(ends)) if len(ends) == 1 else None
                return SpecialTokens(ends, pad if isinstance(pad, int) else alone)
    return SpecialTokens()


def _captions(batch: Batch) -> list[Text] | None:
    """The supervised tokens of each row."""
    if batch.labels is None:
        return None
    return [tuple(row[row != IGNORED].tolist()) for row in batch.labels]


def _pass(rows: Rows, context: Context, placeholder: int | None) -> None:
    """What a forward pass shows of the signal."""
    encoded = SignalStatistics()
    tokens: list[int] = []
    produced: list[int] = []
    refused = 0

    def look(call: Call) -> None:
        if context.path.encoder is not None and call.tensors:
            encoded.add(call.tensors[0])
        result = call.result
        each = int(np.prod(result.shape[1:-1])) if result.dim() > 2 else 1
        tokens.extend([each] * result.shape[0])
        produced[-1] += each * result.shape[0]

    with context.session() as session:
        session.watch(context.path.projector, look)
        for batch in context.batches:
            produced.append(0)
            try:
                session.forward(batch)
            except ProbeError:
                raise
            except SafeError:
                refused += 1
    if context.path.encoder is not None:
        encoded.report(rows, "encoder")
    if tokens:
        rows.add("signal", "tokens", np.mean(tokens).item(), "tokens/clip")
        rows.add("signal", "tokens_min", min(tokens), "tokens/clip")
        rows.add("signal", "tokens_max", max(tokens), "tokens/clip")
    if placeholder is not None:
        ids = [batch.inputs["input_ids"] for batch in context.batches]
        wanted = [int((x == placeholder).sum()) for x in ids]
        texts = sum(len(x) for x in ids)
        rows.add("signal", "placeholders", sum(wanted) / texts, "tokens/text")
        wrong = [w != p for w, p in zip(wanted, produced, strict=True)]
        rows.add("signal", "token_mismatch", np.mean(wrong).item(), "share")
    rows.add("model", "refused", refused / len(context.batches), "share")
