"""What clips, raw or encoded, say about themselves: silent, broken, identical, all alike."""

import hashlib
from collections import Counter, defaultdict

import torch
from torch import Tensor

from probes.norms import token_norms
from probes.record import Rows
from probes.signal_tokens import MeanCosine

Text = tuple[int, ...]


class SignalStatistics:
    """Adds up the clips of all batches; keeps norms and digests, not the clips."""

    def __init__(self) -> None:
        self.clips = self.silent = self.nonfinite = self.identical = 0
        self._batches: list[bool] = []
        """Of each batch with several clips that are not all silent: whether they are one."""
        self._norms: list[float] = []
        self._digests: Counter[bytes] = Counter()
        self._signals: defaultdict[Text, list[bytes]] = defaultdict(list)
        self._cosine = MeanCosine()
        self._mean: Tensor | None = None
        self._square = 0.0
        self._comparable = True

    def add(self, signal: Tensor, texts: list[Text] | None = None) -> None:
        """Look at the clips [R, ...] of a batch.

        Args:
            signal: one row per clip, of any shape.
            texts: supervised tokens of each row, when there is one text per clip.
        """
        rows = signal.detach().cpu().reshape(signal.shape[0], -1)
        if not rows.numel():
            return
        values = rows if rows.is_floating_point() else rows.double()
        norms = torch.from_numpy(token_norms(values).l2)
        finite = norms.isfinite()
        self.clips += len(rows)
        self.nonfinite += int((~finite).sum())
        self.silent += int((norms == 0).sum())
        self._norms += norms[finite].tolist()
        digests = [hashlib.sha1(_bytes(row), usedforsecurity=False).digest() for row in rows]
        here = Counter(digests)
        self.identical += sum(count for count in here.values() if count > 1)
        if len(rows) > 1 and bool((norms != 0).any()):
            self._batches.append(len(here) == 1)
        self._digests += here
        for text, digest in zip(texts or [], digests, strict=False):
            if text:
                self._signals[text].append(digest)
        self._compare(values[finite].double())

    def _compare(self, rows: Tensor) -> None:
        """Compare over batches; only possible while all clips are equally long."""
        if self._mean is not None and self._mean.shape != rows.shape[1:]:
            self._comparable = False
        if not self._comparable or not len(rows):
            return
        self._cosine.add(rows)
        total = rows.sum(0)
        self._mean = total if self._mean is None else self._mean + total
        self._square += float(rows.square().sum())

    def report(self, rows: Rows, component: str) -> None:
        """Add the records."""

        def add(statistic: str, value: float, unit: str) -> None:
            rows.add(component, statistic, value, unit)

        add("clips", self.clips, "clips")
        if not self.clips:
            return
        add("nonfinite", self.nonfinite / self.clips, "share")
        add("silent", self.silent / self.clips, "share")
        add("identical", self.identical / self.clips, "share")
        add("distinct", len(self._digests) / self.clips, "share")
        if self._batches:
            add("one_clip_batches", sum(self._batches) / len(self._batches), "share")
        if self._norms:
            add("l2_median", torch.tensor(self._norms).double().quantile(0.5).item(), "L2/clip")
            add("l2_min", min(self._norms), "L2/clip")
        if self._comparable and self._cosine.value is not None:
            add("cosine_between_clips", self._cosine.value, "cosine")
        count = len(self._norms)
        if self._comparable and count > 1 and self._mean is not None and self._square > 0:
            shared = float(self._mean.square().sum()) / count / self._square
            add("variation", max(0.0, 1.0 - shared) ** 0.5, "ratio")
        texts = sum(map(len, self._signals.values()))
        if texts:
            torn = sum(len(found) for found in self._signals.values() if len(set(found)) > 1)
            add("same_text_other_signal", torn / texts, "share")


def _bytes(row: Tensor) -> bytes:
    return row.contiguous().view(torch.uint8).numpy().tobytes()
