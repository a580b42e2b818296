"""MLP projectors: one CLAP embedding becomes N audio tokens as wide as the language model.

They end in ``tanh(x) * scale`` and nothing follows, so ``scale`` is what the fusion layers see.
"""

import math

import torch
from torch import Tensor, nn

from configs.errors import ModelError

_LARGE = 2.0**40
"""Rows with larger elements are divided by their maximum: their squares would overflow float32.
A float16 projector cannot even hold them, so there the limit is the largest float16."""


class AudioProjector(nn.Module):
    """``LayerNorm -> MLP -> tanh * scale``: [B, D] embeddings to [B, N, H] audio tokens.

    The MLP is ``D -> bottleneck -> N*H`` with a GELU, or one ``D -> N*H`` layer when
    ``bottleneck_dim`` is None. Every element of the output lies within [-scale, scale] for every
    finite input. Tokens are float32 (float64 for a float64 module), also under autocast, because
    tanh saturates early in half precision. Source: seed, "Projector Magnitude Fix".

    Args:
        audio_dim: D, width of the audio embedding (512 for CLAP).
        hidden_size: H, width of the language model.
        num_tokens: N, audio tokens per clip.
        bottleneck_dim: width of the MLP's inner layer, or None for no inner layer.
        scale: amplitude of the final ``tanh(x) * scale``.
    """

    def __init__(
        self,
        audio_dim: int,
        hidden_size: int,
        num_tokens: int,
        bottleneck_dim: int | None = 1024,
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ModelError(f"projector scale must be a finite number above 0, got {scale}")
        self.audio_dim, self.hidden_size, self.num_tokens = audio_dim, hidden_size, num_tokens
        self.scale = float(scale)
        self.norm = nn.LayerNorm(audio_dim)
        width = num_tokens * hidden_size
        if bottleneck_dim is None:
            self.mlp = nn.Sequential(nn.Linear(audio_dim, width))
        else:
            self.mlp = nn.Sequential(
                nn.Linear(audio_dim, bottleneck_dim), nn.GELU(), nn.Linear(bottleneck_dim, width)
            )
        self.amplitude = Amplitude(self.scale)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project [B, D] finite embeddings to [B, N, H] audio tokens.

        Raises:
            ModelError: wrong rank or width, or, on a CPU, an element that is NaN or infinite.
        """
        check_embeddings(embeddings, self.audio_dim)
        flat = self.mlp(self.norm(within_range(embeddings, self.norm.weight.dtype)))
        tokens: Tensor = self.amplitude(flat)
        return tokens.unflatten(-1, (self.num_tokens, self.hidden_size))


class AdaptiveAudioProjector(AudioProjector):
    """An :class:`AudioProjector` whose number of tokens follows the length of the clip.

    A clip of ``full_seconds`` or more gets ``num_tokens`` tokens, a shorter one proportionally
    fewer, never under ``min_tokens``. A token's values do not depend on how many are used.

    Args:
        min_tokens: fewest tokens of any clip.
        full_seconds: clip length in seconds from which on all ``num_tokens`` are used.
    """

    def __init__(
        self,
        audio_dim: int,
        hidden_size: int,
        num_tokens: int,
        bottleneck_dim: int | None = 1024,
        scale: float = 10.0,
        min_tokens: int = 8,
        full_seconds: float = 10.0,
    ) -> None:
        super().__init__(audio_dim, hidden_size, num_tokens, bottleneck_dim, scale)
        if not 1 <= min_tokens <= num_tokens:
            raise ModelError(
                f"projector min_tokens must be between 1 and num_tokens={num_tokens}, "
                f"got {min_tokens}"
            )
        self.min_tokens, self.full_seconds = min_tokens, full_seconds

    def token_mask(self, seconds: Tensor) -> Tensor:
        """Which of the N tokens each clip uses.

        Args:
            seconds: [B] clip lengths in seconds.

        Returns:
            [B, N] bool; True for a token in use.
        """
        share = torch.nan_to_num(seconds.float() / self.full_seconds, nan=1.0).clamp(0, 1)
        count = (share * self.num_tokens).ceil().clamp(self.min_tokens, self.num_tokens)
        return torch.arange(self.num_tokens, device=seconds.device) < count[:, None]


class Amplitude(nn.Module):
    """``tanh(x) * scale``, elementwise; a module of its own so that a probe can hook it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[...] pre-activations to [...] values within [-scale, scale], float32 or float64."""
        x = x if x.dtype == torch.float64 else x.float()
        return torch.tanh(x) * _round_towards_zero(self.scale, x.dtype)

    def extra_repr(self) -> str:
        """Show the scale in the printed model."""
        return f"scale={self.scale}"


def within_range(embeddings: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., D] as ``dtype``, rows that are too large for a LayerNorm divided by their maximum."""
    row_max = embeddings.abs().amax(dim=-1, keepdim=True)
    large = row_max > min(_LARGE, torch.finfo(dtype).max)
    return torch.where(large, embeddings / row_max, embeddings).to(dtype)


def check_embeddings(embeddings: Tensor, audio_dim: int, *, local: bool = False) -> None:
    """Raise ModelError unless ``embeddings`` is finite, floating, and of the right shape.

    Values that are on a GPU are not looked at: it would make the training wait for each projection.
    :class:`~safe.models.safe_model.SAFEModel` looks at them before it moves them there.

    Args:
        embeddings: [B, audio_dim], or [B, M, audio_dim] when ``local``.
        audio_dim: width of an embedding.
        local: whether a clip has M of them.
    """
    shape = list(embeddings.shape)
    if embeddings.dim() != (3 if local else 2):
        wanted = f"[B, M, {audio_dim}] (local features)" if local else f"[B, {audio_dim}]"
        raise ModelError(f"audio embeddings must have shape {wanted}, got shape {shape}")
    if shape[-1] != audio_dim:
        raise ModelError(
            f"audio embeddings are {shape[-1]} wide (shape {shape}) but the projector was made for "
            f"{audio_dim}; use the audio encoder it was trained with, or set model.audio_dim"
        )
    if not embeddings.is_floating_point():
        raise ModelError(f"audio embeddings must be floating point, got {embeddings.dtype}")
    if embeddings.device.type == "cpu":
        check_finite(embeddings)


def check_finite(embeddings: Tensor) -> None:
    """Raise ModelError if a row of ``embeddings`` [B, ...] holds NaN or infinity."""
    finite = torch.isfinite(embeddings)
    if not finite.all():
        finite = finite.flatten(1).all(dim=1)
        bad = [i for i, good in enumerate(finite.tolist()) if not good]
        raise ModelError(
            f"audio embeddings of batch rows {bad[:8]} contain NaN or Inf; "
            "find the clips with `safe-train data check ROOT`"
        )


def _round_towards_zero(value: float, dtype: torch.dtype) -> float:
    """The number of ``dtype`` nearest to ``value`` that is not larger, for a positive value."""
    rounded = torch.tensor(min(value, torch.finfo(dtype).max), dtype=dtype)
    if rounded.item() > value:
        rounded = torch.nextafter(rounded, torch.zeros((), dtype=dtype))
    return rounded.item()
