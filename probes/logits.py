"""Next-token logits where they count, and how far two of them are apart."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from probes.batch import IGNORED, Batch
from probes.controls import texts
from probes.errors import ProbeError
from probes.loss import field_of

_CHUNK = 64
"""Rows of the vocabulary that are held in float64 at a time."""


class Counted(NamedTuple):
    """The output at the M positions that count."""

    logits: Tensor
    """[M, V]."""
    text: Tensor
    """[M] the text (row of the batch) that each position belongs to, on the CPU."""
    position: Tensor
    """[M] the place in its text that each was predicted from, on the CPU (below 0: a prefix)."""


def counted(output: Any, batch: Batch, splice: int | str | None = None) -> Counted:
    """The logits that predict the supervised tokens; without labels, those of all real text tokens.

    Args:
        output: has ``logits``, or is them: [B, T, V] (extra positions in front are a spliced
            prefix), or [M, V] already picked at the supervised tokens.
        batch: what the model was given.
        splice: see ``SignalPath.splice``.

    Raises:
        ProbeError: there are no logits, or their shape does not belong to the batch.
    """
    logits = output if isinstance(output, Tensor) else field_of(output, "logits")
    if not isinstance(logits, Tensor):
        raise ProbeError(
            f"the model returned no logits ({type(output).__name__}); its forward must return "
            "them, or an output with the field 'logits'"
        )
    if batch.labels is None:
        chosen = batch.positions(logits.shape, splice).text
    else:  # position t predicts the token after it
        chosen = (batch.labels != IGNORED).roll(-1, 1)
        chosen[:, -1] = False
    text, position = chosen.nonzero().cpu().unbind(1)
    shape = list(logits.shape)
    if logits.dim() == 3:
        logits = logits[:, -chosen.shape[1] :]
    if logits.shape[:2] == chosen.shape and logits.dim() == 3:
        logits = logits[chosen.to(logits.device)]
    if logits.dim() != 2 or logits.shape[0] != text.shape[0]:
        raise ProbeError(
            f"logits of shape {shape} do not belong to a batch of {texts(batch)} texts with "
            f"{text.shape[0]} tokens to predict"
        )
    front = 0 if batch.width is None else chosen.shape[1] - batch.width
    return Counted(logits, text, position - front)


def divergence(own: Tensor, other: Tensor) -> Tensor:
    """KL(own || other) of the next-token distributions, [M] float64 nats, from logits [M, V]."""
    parts = []
    for a, b in zip(own.split(_CHUNK), other.split(_CHUNK), strict=True):
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        # a token that own rules out (logit -inf) adds nothing, whatever other says of it
        parts.append(torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1))
    return torch.cat(parts) if parts else own.new_empty(0, dtype=torch.float64)


def changes(own: Tensor, other: Tensor) -> tuple[int, float]:
    """How many logits differ at all (two NaN are equal), and the largest absolute difference."""
    differs = (own != other) & ~(own.isnan() & other.isnan())
    count = int(differs.sum())
    if count == 0:
        return 0, 0.0
    return count, float((own[differs].double() - other[differs].double()).abs().max())
