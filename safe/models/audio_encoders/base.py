"""What every audio encoder promises, and the part of it that they share."""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import ModelError

EMBEDDING_WIDTH = 512
CENTER_CROP = "center"
"""The one crop rule: of a clip longer than max_seconds, the middle max_seconds are heard (the
start is rounded down to a sample). Nothing is random."""
WAYS_OUT = "give --audio-encoder hf:FOLDER, aisfx (after `safe-train fetch aisfx`) or embedded"
"""What to do about a CLAP that is not there or cannot be loaded."""


class AudioEncoder(Protocol):
    """A frozen encoder of sound."""

    name: str
    """The name it was asked for."""
    identity: str
    """Name, hash of the checkpoint and crop rule: equal identities give equal embeddings."""
    sample_rate: int
    """Samples per second that it expects, in Hz."""
    max_seconds: float
    """Longest stretch of a clip that it hears."""
    crop_rule: str
    """How a longer clip is cropped."""
    normalized: bool
    """Whether the embeddings have L2 norm 1."""
    shape: tuple[int, ...]
    """Of one clip's embedding: (512,), or (M, D) for M local features."""

    def encode(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the embeddings [B, *shape] of a batch of clips [B, S]."""
        ...


class FrozenEncoder(nn.Module, ABC):
    """Checks, cropping and normalisation around a subclass's network.

    Args:
        name: the name it was asked for.
        weights: what its weights are called and their short hash; not where they lie.
        sample_rate: Hz.
        max_seconds: longest stretch of a clip that it hears.
    """

    crop_rule: str = CENTER_CROP
    normalized: bool = True
    shape: tuple[int, ...] = (EMBEDDING_WIDTH,)
    local_shape: tuple[int, int] | None = None
    """(M, D) of the features before they are averaged; None for an encoder that has none."""

    def __init__(self, name: str, weights: str, sample_rate: int, max_seconds: float) -> None:
        super().__init__()
        self.name = name
        self.identity = f"{weights}+{self.crop_rule}"
        self.sample_rate = sample_rate
        self.max_seconds = max_seconds

    def freeze(self) -> None:
        """Switch off gradients and training behaviour for good; called after loading."""
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":  # noqa: ARG002
        """Stay in eval mode: batch norm and dropout must not depend on who calls ``train()``."""
        super().train(mode=False)
        return self

    def encode(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return one embedding per clip.

        Args:
            waveform: [B, S] float32, mono, at ``sample_rate``, usually within [-1, 1]; clips
                shorter than S are padded at the end.
            lengths: [B] integers, samples of each clip without its padding; None means S. What
                lies beyond is not heard, so a clip's embedding does not depend on its
                neighbours in the batch.

        Returns:
            [B, 512] float32 of L2 norm 1, on the encoder's device, without gradient history.

        Raises:
            ModelError: another rank or dtype, no clips, NaN or Inf, or impossible lengths.
        """
        clips = self.cropped(waveform, lengths)
        # no_grad and not inference_mode: a projector has to be able to train on the result.
        with torch.no_grad():
            return F.normalize(self._embed(clips).float(), dim=-1)

    def cropped(self, waveform: Tensor, lengths: Tensor | None) -> list[Tensor]:
        """Return each clip without padding, of a long one the middle ``max_seconds``.

        Raises:
            ModelError: as :meth:`encode`.
        """
        found = _checked_lengths(waveform, lengths)
        longest = int(self.max_seconds * self.sample_rate)
        clips = []
        for row, length in zip(waveform, found, strict=True):
            start = max(length - longest, 0) // 2
            clips.append(row[start : min(start + longest, length)])
        return clips

    def local(self, clips: list[Tensor]) -> Tensor:
        """Return [B, M, D] features in order of time for cropped clips; see ``local_shape``."""
        raise ModelError(f"audio encoder {self.name} has no local features ({len(clips)} clips)")

    @abstractmethod
    def _embed(self, clips: list[Tensor]) -> Tensor:
        """Return [B, 512] for cropped clips of at least one sample each."""


def _checked_lengths(waveform: Tensor, lengths: Tensor | None) -> list[int]:
    if waveform.ndim != 2 or waveform.shape[0] == 0:
        raise ModelError(
            f"waveform has shape {tuple(waveform.shape)}: must be [clips, samples], with at least "
            "one clip; a single clip needs waveform[None]"
        )
    if waveform.dtype != torch.float32:
        raise ModelError(f"waveform is {waveform.dtype}: must be torch.float32; use .float()")
    batch, samples = waveform.shape
    found = (
        [samples] * batch if lengths is None else [int(length) for length in lengths.reshape(-1)]
    )
    if len(found) != batch:
        raise ModelError(f"{len(found)} lengths for {batch} clips: one length per clip is needed")
    for index, length in enumerate(found):
        if not 1 <= length <= samples:
            raise ModelError(
                f"clip {index} of the batch has length {length}: must be 1 to {samples} samples"
            )
        if not bool(torch.isfinite(waveform[index, :length]).all()):
            raise ModelError(f"clip {index} of the batch contains NaN or Inf; leave it out")
    return found
