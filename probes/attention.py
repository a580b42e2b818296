"""Say how the fusion attends to the signal's tokens: on one, on some, on all alike.

Read from the modules that ``SignalPath.attention`` names, which return weights [B, heads, T, N]
(or [B, T, N], or [B*heads, T, N]) over N signal tokens; without them there are no records. A row is
what one text token gives to the N tokens; rows of padding are left out. Records of component
``fusion`` by layer (all heads), and ``fusion:head<i>`` for each head:

- ``entropy`` (nats), mean over rows; ``entropy_relative``, the same divided by ln of the tokens
  that may be attended to: 1 is uniform, 0 is one-hot (not there when only one token may be).
- ``max_weight``, mean over rows of the largest weight; ``one_hot``, share of rows where it exceeds
  0.99.
- ``reach``, share of the tokens that may be attended to whose mean weight over the rows of their
  text exceeds 1/(10 N).
- ``row_sum_error``, largest |sum - 1| of a row (rounding: float32 2e-7, bfloat16 0.003).
- ``nonfinite``, share of rows with NaN or infinity (a row whose tokens are all masked gives NaN);
  these rows are left out of everything else.

Component ``fusion`` by layer only: ``calls`` per forward pass; ``tokens``, N; ``tokens_in_use``,
mean per text of the tokens with a weight above 0 in any row or head; and where the module is given
a boolean mask [B, N] (True: may be attended to, but in ``key_padding_mask`` True: may not)
``masked_weight``, mean weight per row on tokens that may not, ``all_masked``, share of texts whose
tokens all may not, and ``mask_displaced``, share of texts whose tokens that may are not one run at
the beginning or at the end.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.batch import Batch
from probes.context import Context
from probes.errors import ProbeError
from probes.norms import Floats
from probes.record import Record, Rows
from probes.session import Call

ONE_HOT = 0.99
"""A row is one-hot when its largest weight exceeds this."""
REACHED = 0.1
"""A token is reached when its mean weight exceeds this share of 1/N."""


def measure(context: Context) -> list[Record]:
    """Measure all batches in one forward pass each, without gradients, in eval mode.

    Raises:
        ProbeError: no batches, or a module that does not return attention weights.
    """
    rows = context.rows("attention")
    meters = {layer: _Meter(layer) for layer in context.path.attention}
    with context.session() as session:
        for layer, module in context.path.attention.items():
            session.watch(module, meters[layer].add)
        for batch in context.need_batches("attention"):
            for meter in meters.values():
                meter.batch = batch
            if meters:
                session.forward(batch)
        for meter in meters.values():
            meter.report(rows, session.forwards)
    return rows.records


class _Meter:
    """Adds up the weights of one fusion layer."""

    batch: Batch

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.calls = 0
        self.tokens: list[int] = []
        self.in_use: list[Floats] = []
        self.masked_weight: list[Floats] = []
        self.all_masked: list[NDArray[np.bool_]] = []
        self.displaced: list[NDArray[np.bool_]] = []
        self.heads: list[list[dict[str, Floats]]] = []

    def add(self, call: Call) -> None:
        """Look at one call of the attention module."""
        weights = self._weights(call.result)
        count, _, width, tokens = weights.shape
        text = self.batch.positions(torch.Size([count, width, 1])).text.cpu().numpy()
        mask = _mask(call, count, tokens, text)
        allowed = np.ones((count, tokens), dtype=bool) if mask is None else mask
        self.calls += 1
        self.tokens.append(tokens)
        with np.errstate(invalid="ignore"):
            used = (weights > 0).any(axis=(1, 2))
        self.in_use.append(used.sum(-1).astype(float))
        if mask is not None:
            self.all_masked.append(~allowed.any(-1))
            self.displaced.append(_displaced(allowed))
            outside = np.where(allowed[:, None, None], 0.0, weights).sum(-1)
            self.masked_weight.append(outside.transpose(0, 2, 1)[text].ravel())
        for head in range(weights.shape[1]):
            while len(self.heads) <= head:
                self.heads.append([])
            self.heads[head].append(_head_statistics(weights[:, head], text, allowed))

    def _weights(self, result: Tensor) -> Floats:
        """[B, heads, T, N] float64."""
        rows = next(
            (x.shape[0] for k in ("input_ids", "attention_mask", "inputs_embeds")
             if isinstance(x := self.batch.inputs.get(k), Tensor)), 0
        )  # fmt: skip
        if result.dim() == 3 and rows and result.shape[0] % rows == 0:
            result = result.unflatten(0, (rows, -1))
        if result.dim() != 4 or result.shape[0] != rows:
            raise ProbeError(
                f"the attention of layer {self.layer} returned shape {list(result.shape)}; name "
                f"the module that returns weights [B, heads, T, N], here with B = {rows}"
            )
        weights: Floats = result.detach().to("cpu", torch.float64).numpy()
        return weights

    def report(self, rows: Rows, forwards: int) -> None:
        """Add the records of this layer."""

        def add(statistic: str, value: float, unit: str) -> None:
            rows.add("fusion", statistic, value, unit, self.layer)

        add("calls", self.calls / forwards if forwards else 0.0, "calls/forward")
        if not self.calls:
            return
        add("tokens", sum(self.tokens) / self.calls, "tokens")
        add("tokens_in_use", np.concatenate(self.in_use).mean(), "tokens")
        if self.all_masked:
            add("all_masked", np.concatenate(self.all_masked).mean(), "share")
            add("mask_displaced", np.concatenate(self.displaced).mean(), "share")
            leaked = np.concatenate(self.masked_weight)
            leaked = leaked[np.isfinite(leaked)]
            if leaked.size:
                add("masked_weight", leaked.mean(), "weight")
        _report(rows, "fusion", self.layer, [part for head in self.heads for part in head])
        for head, parts in enumerate(self.heads):
            _report(rows, f"fusion:head{head}", self.layer, parts)


def _mask(call: Call, count: int, tokens: int, text: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """[B, N] tokens that may be attended to; None when the module was given no such mask."""
    named = [*((None, value) for value in call.args), *call.kwargs.items()]
    for name, value in named:
        if not (isinstance(value, Tensor) and value.dtype == torch.bool and value.dim() > 1):
            continue
        if (value.shape[0], value.numel()) == (count, count * tokens):
            mask: NDArray[np.bool_] = value.reshape(count, tokens).cpu().numpy()
            if text.shape == mask.shape and np.array_equal(text, mask):
                continue  # it is the text's own, and there are as many signal tokens as text
            return ~mask if name == "key_padding_mask" else mask
    return None


def _displaced(allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[B] texts whose tokens in use [B, N] are neither a beginning nor an end of all tokens."""
    edges = (allowed[:, 1:] != allowed[:, :-1]).sum(-1)
    found: NDArray[np.bool_] = edges > 1
    return found


def _head_statistics(
    weights: Floats, text: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> dict[str, Floats]:
    """Values per row, or per token, of one head's weights [B, T, N]."""
    finite = np.isfinite(weights).all(-1)
    chosen = text & finite
    choices = np.broadcast_to(allowed.sum(-1)[:, None], text.shape)[chosen]
    rows = weights[chosen]
    positive = np.where(rows > 0, rows, 1.0)
    entropy = -(positive * np.log(positive)).sum(-1)
    several = choices > 1
    counts = chosen.sum(-1)
    heard = counts > 0
    mean = np.where(chosen[..., None], weights, 0.0).sum(1)[heard] / counts[heard, None]
    reached = mean > REACHED / np.maximum(allowed[heard].sum(-1, keepdims=True), 1)
    return {
        "entropy": entropy,
        "entropy_relative": entropy[several] / np.log(choices[several]),
        "max_weight": rows.max(-1),
        "one_hot": (rows.max(-1) > ONE_HOT).astype(float),
        "reach": reached[allowed[heard]].astype(float),
        "row_sum_error": np.abs(rows.sum(-1) - 1),
        "nonfinite": (~finite[text]).astype(float),
    }


_UNITS = {
    "entropy": "nats", "entropy_relative": "ratio", "max_weight": "weight", "one_hot": "share",
    "reach": "share", "row_sum_error": "weight", "nonfinite": "share",
}  # fmt: skip


def _report(rows: Rows, component: str, layer: int, parts: list[dict[str, Floats]]) -> None:
    """Add the mean of each statistic (of ``row_sum_error`` the largest) where there is a value."""
    for statistic, unit in _UNITS.items():
        values = np.concatenate([part[statistic] for part in parts])
        if values.size:
            whole = values.max() if statistic == "row_sum_error" else values.mean()
            rows.add(component, statistic, whole, unit, layer)
