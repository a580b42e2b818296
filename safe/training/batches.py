"""Captions as token batches: prompts, labels, length buckets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from configs.errors import DataError
from safe.data.mapped_rows import MappedRows
from safe.models.safe_model import IGNORED

_T = TypeVar("_T")

_BUCKET_BATCHES = 50
"""Batches whose examples are sorted by length together: little padding, still well shuffled."""


class CaptionTokens:
    """Turns prompt and caption into ids, the same way for training and generation.

    Spaces at the end of the prompt belong to the caption's first token (byte-pair tokenizers fuse
    them), so they move there.

    Args:
        tokenizer: a transformers tokenizer with an end-of-sequence token.
        prompt: the text in front of every caption.
    """

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        stem = prompt.rstrip(" ")
        self._lead = prompt[len(stem) :]
        self.prompt_ids: list[int] = tokenizer(stem)["input_ids"]
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def caption(self, text: str, limit: int) -> tuple[list[int], bool]:
        """Ids of a caption with its end token, and whether it was cut to ``limit`` tokens."""
        ids = self.tokenizer(self._lead + text, add_special_tokens=False)["input_ids"]
        return [*ids[:limit], self.eos], len(ids) > limit

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens and surrounding white space removed."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()


@dataclass(frozen=True)
class Batch:
    """A micro-batch of caption examples, right padded."""

    input_ids: Tensor
    """[B, T] prompt, caption, end token."""
    attention_mask: Tensor
    """[B, T], 0 for padding."""
    labels: Tensor
    """[B, T], the ids of caption and end token, -100 for prompt and padding."""
    audio: Tensor
    """[B, D] float32 audio embeddings, or [B, M, D] local features."""
    seconds: Tensor
    """[B] clip lengths in seconds."""
    clip_ids: tuple[str, ...]
    """Which clips these are."""

    @property
    def supervised(self) -> int:
        """How many tokens the loss is taken on."""
        return int((self.labels != IGNORED).sum())


class CaptionDataset:
    """Every (clip, caption) pair of a split, tokenised once.

    Args:
        clip_ids: ids of the clips, one per row of ``embeddings``.
        captions: captions of each clip.
        embeddings: [n, D] float32 audio embeddings, or [n, M, D] local features.
        seconds: [n] clip lengths.
        tokens: tokenizer and prompt.
        max_caption_tokens: longer captions are cut; ``truncated`` counts them.

    Raises:
        DataError: nothing to train on.
    """

    def __init__(
        self,
        clip_ids: Sequence[str],
        captions: Sequence[Sequence[str]],
        embeddings: np.ndarray | MappedRows,
        seconds: np.ndarray,
        tokens: CaptionTokens,
        max_caption_tokens: int,
    ) -> None:
        self.clip_ids, self.embeddings, self.seconds = clip_ids, embeddings, seconds
        self.tokens = tokens
        self.rows: list[tuple[int, list[int]]] = []
        self.truncated = 0
        for row, texts in enumerate(captions):
            for text in texts:
                ids, cut = tokens.caption(text, max_caption_tokens)
                self.rows.append((row, ids))
                self.truncated += cut
        if not self.rows:
            raise DataError("the training split has no usable clip with a caption")

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> np.ndarray:
        """[examples] caption lengths in tokens."""
        return np.array([len(ids) for _, ids in self.rows])

    def batch(self, indices: Sequence[int]) -> Batch:
        """Collate the examples at ``indices``."""
        rows = [self.rows[i][0] for i in indices]
        captions = [self.rows[i][1] for i in indices]
        prompts = [self.tokens.prompt_ids] * len(rows)
        return Batch(
            *collate(prompts, captions, self.tokens.pad),
            torch.from_numpy(np.ascontiguousarray(self.embeddings[rows], dtype=np.float32)),
            torch.tensor(self.seconds[rows], dtype=torch.float32),
            tuple(self.clip_ids[row] for row in rows),
        )


def collate(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels``, each [B, T].

    Args:
        prompts: ids that are given, one list per row.
        answers: ids that follow and are supervised.
        pad: id of the padding.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    shape = (len(rows), max(map(len, rows)))
    input_ids, labels = torch.full(shape, pad), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        input_ids[i, : len(row)] = torch.tensor(row)
        labels[i, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])
        mask[i, : len(row)] = 1
    return input_ids, mask, labels


def epoch_windows(
    lengths: np.ndarray, batch_size: int, accumulation: int, seed: int, epoch: int
) -> list[list[list[int]]]:
    """The optimizer steps of one epoch: a list of windows of micro-batches of example indices.

    Every example occurs once. Examples of like length share a micro-batch. The order depends on
    ``seed`` and ``epoch`` alone, so a resumed run needs only the number of windows already done.
    The last window holds what is left.

    Args:
        lengths: [examples] caption lengths in tokens.
        batch_size: examples per micro-batch.
        accumulation: micro-batches per window.
        seed: of the run.
        epoch: number of the epoch, from 0.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    batches: list[list[int]] = []
    for pool in _chunks(order.tolist(), batch_size * _BUCKET_BATCHES):
        pool.sort(key=lambda i: int(lengths[i]))
        batches.extend(_chunks(pool, batch_size))
    shuffled = [batches[i] for i in rng.permutation(len(batches))]
    return list(_chunks(shuffled, accumulation))


def _chunks(items: list[_T], size: int) -> Iterator[list[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
