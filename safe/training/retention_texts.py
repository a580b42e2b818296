"""Everyday questions with short answers: what retention keeps the model from unlearning."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from safe.data.mapped_rows import MappedRows
from safe.models.prompts import REQUEST
from safe.training.batches import CaptionTokens, collate


def read_texts() -> list[tuple[str, str]]:
    """The shipped (question, answer) pairs."""
    text = files("safe.training").joinpath("retention_texts.txt").read_text(encoding="utf-8")
    pairs = [line.partition("\t") for line in text.splitlines() if line]
    return [(question, answer) for question, _, answer in pairs]


def _framed(question: str, prompt: str) -> str:
    """``prompt`` with ``question`` in the place of the request, white space at the end kept."""
    if REQUEST in prompt:
        return prompt.replace(REQUEST, question)
    return question + (prompt[len(prompt.rstrip()) :] or " ")


@dataclass(frozen=True)
class TextBatch:
    """Texts with a distractor clip each, right padded."""

    input_ids: Tensor
    """[B, T] question in the backbone's conversation form, then the answer and the end token."""
    attention_mask: Tensor
    """[B, T], 0 for padding."""
    labels: Tensor
    """[B, T], the ids of answer and end token, -100 elsewhere."""
    audio: Tensor
    """[B, D] float32 embeddings of clips that have nothing to do with the texts."""
    pixel_values: Tensor | None = None
    """[B, 3, size, size] the pictures that the texts are about; None without pictures."""

    @property
    def sights(self) -> dict[str, Tensor]:
        """What the backbone needs besides the texts, by argument name."""
        return {} if self.pixel_values is None else {"pixel_values": self.pixel_values}


class RetentionTexts:
    """The shipped texts, tokenised for one backbone, and clips to play meanwhile.

    Args:
        tokens: the run's tokenizer and prompt. The question takes the place of the request in the
            prompt; where it is not found there, it takes the place of the whole prompt.
        embeddings: [n, D] audio embeddings to draw distractors from.
        seed: with the step it decides which texts and clips are drawn.
        device: where batches go.
        pairs: questions with answers; None for the shipped ones.
    """

    SIZE: ClassVar[int] = 8
    """Texts per batch."""
    TAG: ClassVar[int] = 0x5AFE
    """Third part of the seed, so that these draws differ from those of the epochs' shuffling."""

    def __init__(
        self,
        tokens: CaptionTokens,
        embeddings: np.ndarray | MappedRows,
        seed: int,
        device: torch.device,
        pairs: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        self.embeddings, self.seed, self.device, self.pad = embeddings, seed, device, tokens.pad
        self.prompts: list[list[int]] = []
        self.answers: list[list[int]] = []
        for question, answer in read_texts() if pairs is None else pairs:
            framed = CaptionTokens(tokens.tokenizer, _framed(question, tokens.prompt))
            self.prompts.append(framed.prompt_ids)
            self.answers.append(framed.caption(answer, limit=64)[0])

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(self, step: int, count: int) -> TextBatch:
        """``count`` random texts with random clips; the same for the same seed and step."""
        rng = np.random.default_rng((self.seed, step, self.TAG))
        return self._batch(rng.choice(len(self), size=count, replace=False), rng)

    def all(self, size: int) -> list[TextBatch]:
        """Every text once, in batches of ``size``, with random clips."""
        rng = np.random.default_rng((self.seed, 0, self.TAG))
        chunks = np.split(np.arange(len(self)), range(size, len(self), size))
        return [self._batch(chunk, rng) for chunk in chunks]

    def _batch(self, rows: np.ndarray, rng: np.random.Generator) -> TextBatch:
        texts = collate([self.prompts[i] for i in rows], [self.answers[i] for i in rows], self.pad)
        clips = rng.integers(len(self.embeddings), size=len(rows))
        audio = torch.from_numpy(np.array(self.embeddings[clips], dtype=np.float32))
        ids, mask = (text.to(self.device, non_blocking=True) for text in texts[:2])
        return TextBatch(ids, mask, texts[2], audio)
