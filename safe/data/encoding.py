"""What the data side needs of an audio encoder, and how it feeds one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from safe.data.audio import Waveform

if TYPE_CHECKING:
    import torch


class Encoder(Protocol):
    """A frozen audio encoder (safe/models has them)."""

    @property
    def identity(self) -> str:
        """Name, checkpoint hash and crop rule: equal identities give equal embeddings."""

    @property
    def sample_rate(self) -> int:
        """Rate of the waveforms it takes, in Hz."""

    @property
    def max_seconds(self) -> float:
        """Longest waveform it takes, in seconds."""

    @property
    def crop_rule(self) -> str:
        """Which part of a longer clip it hears: "start", "center" or "random"."""

    def encode(self, waveform: "torch.Tensor", lengths: "torch.Tensor | None") -> "torch.Tensor":
        """Return embeddings [B, ...] of zero-padded waveforms [B, S], lengths [B] in samples."""


def encode_batch(encoder: Encoder, waves: Sequence[Waveform], dim: int) -> NDArray[np.float32]:
    """Return the embeddings [B, dim], flattened, of clips zero-padded to the longest of them.

    Raises DataError when the encoder returns another number of values.
    """
    import torch  # only here: reading the cache needs no torch

    lengths = [len(wave.samples) for wave in waves]
    padded = np.zeros((len(waves), max(lengths)), np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave.samples)] = wave.samples
    with torch.no_grad():
        result = encoder.encode(torch.from_numpy(padded), torch.tensor(lengths))
    if tuple(result.flatten(1).shape) != (len(waves), dim):
        raise DataError(
            f"encoder {encoder.identity!r} returned {list(result.shape)} for {len(waves)} clips; "
            f"the cache holds embeddings of width {dim}"
        )
    return result.detach().flatten(1).float().cpu().numpy()
