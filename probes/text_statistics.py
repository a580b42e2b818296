"""What the labels, ids and masks of caption batches say about themselves."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from probes.batch import IGNORED, Batch
from probes.record import Rows

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


class SpecialTokens(NamedTuple):
    """Ids that a tokenizer gives a meaning; unknown ones are empty or None."""

    eos: frozenset[int] = frozenset()
    pad: int | None = None


class TextStatistics:
    """Adds up the texts of all batches.

    Args:
        special: ids of the end of a text and of padding, as far as known.
        placeholder: id whose positions the signal replaces, if it is spliced in by one.
    """

    def __init__(self, special: SpecialTokens, placeholder: int | None = None) -> None:
        self.special, self.placeholder = special, placeholder
        self.batches = self.rows = 0
        self.supervised: list[int] = []
        """Of each batch."""
        self.first: list[int] = []
        """Of each supervised row: real text tokens before its first label."""
        self.texts: list[list[tuple[int, bool]]] = []
        """The real tokens of each row, and whether each is supervised."""
        self.counts: dict[str, list[int]] = {}
        """Name to [cases, of how many]."""

    def _count(self, name: str, cases: Flags, among: Flags | None = None) -> None:
        chosen = cases if among is None else cases[among]
        total = self.counts.setdefault(name, [0, 0])
        total[0] += int(chosen.sum())
        total[1] += chosen.size

    def add(self, batch: Batch) -> None:
        """Look at one batch; without labels there is nothing to say about supervision."""
        self.batches += 1
        ids, mask = (
            _array(batch.inputs.get("input_ids")),
            _array(batch.inputs.get("attention_mask")),
        )
        labels = _array(batch.labels)
        shape = next((x.shape for x in (ids, mask, labels) if x is not None and x.ndim == 2), None)
        if shape is None:
            return
        self.rows += shape[0]
        real = np.ones(shape, bool) if mask is None or mask.shape != shape else mask != 0
        if mask is not None:
            self._count("rows_all_masked", ~real.any(1))
        pads = _padding(ids, self.special)
        if pads is not None and mask is not None:
            self._count("padding_attended", real, pads)
        if ids is not None and mask is not None and self.placeholder is not None:
            self._count("signal_masked", ~real, ids == self.placeholder)
        padding = ~real if pads is None else ~real | pads
        self._sides(padding)
        if labels is None:
            return
        target = labels != IGNORED
        self.supervised.append(batch.supervised)
        if target.shape != shape:
            return
        self._count("supervised_masked", ~real, target)
        if pads is not None:
            self._count("supervised_padding", pads, target)
        self._supervision(ids, target, padding)
        if ids is not None:
            self._agreement(ids, labels, target)
            self._endings(ids, target)
            for row, flags, kept in zip(ids, target, ~padding, strict=True):
                self.texts.append(list(zip(row[kept].tolist(), flags[kept].tolist(), strict=True)))

    def _sides(self, padding: Flags) -> None:
        self._count("padding", padding)
        padded = padding.any(1) & ~padding.all(1)
        self._count("left_padded", padding[:, 0], padded)
        self._count("right_padded", padding[:, -1], padded)
        self._count("both_sides_padded", padding[:, 0] & padding[:, -1], padded)

    def _supervision(self, ids: Ids | None, target: Flags, padding: Flags) -> None:
        has_labels, outside = target.any(1), padding
        if ids is not None and self.placeholder is not None:
            signal = ids == self.placeholder
            self._count("signal_supervised", target, signal)
            outside = padding | signal
        self._count("rows_all_ignored", ~has_labels)
        self._count("rows_fully_supervised", (target | outside).all(1), has_labels)
        for flags, kept in zip(target[has_labels], ~outside[has_labels], strict=True):
            self.first.append(int(kept[: int(flags.argmax())].sum()))

    def _agreement(self, ids: Ids, labels: Ids, target: Flags) -> None:
        self._count("agreement_same", ids == labels, target)
        self._count("agreement_next", ids[:, 1:] == labels[:, :-1], target[:, :-1])
        self._count("agreement_previous", ids[:, :-1] == labels[:, 1:], target[:, 1:])

    def _endings(self, ids: Ids, target: Flags) -> None:
        if not self.special.eos:
            return
        last = ids.shape[1] - 1 - target[:, ::-1].argmax(1)
        end = ids[np.arange(len(ids)), last]
        ended = np.isin(end, list(self.special.eos))
        self._count("ends_with_eos", ended, target.any(1))

    def report(self, rows: Rows) -> None:
        """Add the records of component ``text``."""
        rows.add("text", "batches", self.batches, "batches")
        rows.add("text", "rows", self.rows, "texts")
        if self.supervised:
            rows.add("text", "supervised_mean", np.mean(self.supervised).item(), "tokens/batch")
            rows.add("text", "supervised_min", min(self.supervised), "tokens/batch")
            silent = self.supervised.count(0) / len(self.supervised)
            rows.add("text", "batches_all_ignored", silent, "share")
        for name, (cases, among) in self.counts.items():
            if among:
                rows.add("text", name, cases / among, "share")
        if self.first:
            rows.add("text", "first_supervised", float(np.median(self.first)), "tokens")
            rows.add("text", "first_supervised_min", min(self.first), "tokens")
        if len(self.texts) > 1:
            prefix = _shared_prefix(self.texts)
            rows.add("text", "shared_prefix", len(prefix), "tokens")
            if prefix:
                rows.add("text", "shared_prefix_supervised", float(np.mean(prefix)), "share")


def _array(tensor: Tensor | None) -> Ids | None:
    return None if not isinstance(tensor, Tensor) else tensor.detach().cpu().long().numpy()


def _padding(ids: Ids | None, special: SpecialTokens) -> Flags | None:
    """[B, T] runs of the pad id at either end of a row; None when that cannot be told.

    Where padding is the end-of-text id too, the one next to the text is its end, or its start.
    """
    if ids is None or special.pad is None:
        return None
    pad = ids == special.pad
    right = np.logical_and.accumulate(pad[:, ::-1], axis=1)[:, ::-1]
    left = np.logical_and.accumulate(pad, axis=1)
    if special.pad in special.eos:
        before, after = np.roll(right, 1, axis=1), np.roll(left, -1, axis=1)
        before[:, 0] = after[:, -1] = True  # a row of nothing else has no text to end or start
        right, left = right & before, left & after
    found: Flags = right | left
    return found


def _shared_prefix(texts: list[list[tuple[int, bool]]]) -> list[float]:
    """Of each token that all texts begin with: the share of texts that supervise it."""
    found = []
    for column in zip(*texts, strict=False):
        if len({token for token, _ in column}) > 1:
            break
        found.append(sum(flag for _, flag in column) / len(column))
    return found
