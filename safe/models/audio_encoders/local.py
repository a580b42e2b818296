"""What an encoder hears where, before it is averaged into one embedding."""

from typing import Literal

import torch
from torch import Tensor

from configs.errors import ModelError
from safe.models.audio_encoders.base import FrozenEncoder

Features = Literal["pooled", "local"]


class LocalFeatures:
    """An encoder's features in order of time instead of their mean; an ``AudioEncoder``.

    Args:
        encoder: a loaded encoder that has local features.

    Raises:
        ModelError: the encoder has none.
    """

    def __init__(self, encoder: FrozenEncoder) -> None:
        if encoder.local_shape is None:
            raise ModelError(
                f"audio encoder {encoder.name} has no local features; "
                "leave out model.audio_features=local"
            )
        self.encoder = encoder
        self.name, self.identity = encoder.name, f"{encoder.identity}+local"
        self.sample_rate, self.max_seconds = encoder.sample_rate, encoder.max_seconds
        self.crop_rule, self.normalized = encoder.crop_rule, False
        self.shape: tuple[int, ...] = encoder.local_shape

    def encode(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the features of a batch of clips.

        Args:
            waveform: as for ``FrozenEncoder.encode``.
            lengths: likewise.

        Returns:
            [B, M, D] float32 in order of time, not normalised, without gradient history.

        Raises:
            ModelError: as ``FrozenEncoder.encode``.
        """
        clips = self.encoder.cropped(waveform, lengths)
        with torch.no_grad():
            return self.encoder.local(clips).float()


def in_order_of_time(grid: Tensor) -> Tensor:
    """Return HTSAT's last features [B, C, F, T] as [B, T*F, C], the F of one moment adjacent."""
    return grid.permute(0, 3, 2, 1).flatten(1, 2)
