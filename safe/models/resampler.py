"""A resampler: learned queries listen to the audio features, one audio token each.

Where the MLP projector gives every token a matrix of its own (168M parameters at hidden size 5120,
32 tokens), here all tokens share one, and what tells them apart is what their queries attend to.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import ModelError
from safe.models.projectors import Amplitude, check_embeddings, within_range

_HEAD = 64
"""Width of an attention head, where the width of the queries can be divided by it."""
_QUERY_STD = 0.5
"""Of the queries at the start: as large as the values, which have 0.58 after a default linear
layer on normalised features."""


class ResamplerProjector(nn.Module):
    """``LayerNorm -> cross-attention of learned queries -> GELU -> linear -> tanh * scale``.

    Takes one pooled embedding [B, D] or M features [B, M, D] in order of time, and gives [B, N, H]
    audio tokens. Keys know their place in time (fixed sines, Vaswani et al. 2017), values do not.
    Over a single feature attention is no choice, so the pooled projector has no keys: every token
    gets that feature, and differs by its query. The last operation is the MLP projector's: every
    element lies within [-scale, scale], in float32 (float64 for a float64 module). In the manner
    of the resamplers of Flamingo (Alayrac et al. 2022) and BLIP-2 (Li et al. 2023), with one layer.

    At H = 5120, N = 32, width 1024: 6,856,192 parameters for D = 768 local features, 5,807,104 for
    the pooled D = 512 (the MLP has 168,462,336).

    Args:
        audio_dim: D, width of a feature.
        hidden_size: H, width of the language model.
        num_tokens: N, audio tokens per clip.
        width: of queries, keys and values.
        scale: amplitude of the final ``tanh(x) * scale``.
        local: whether features come as [B, M, D].

    Raises:
        ModelError: a scale that is not a finite number above 0.
    """

    def __init__(
        self,
        audio_dim: int,
        hidden_size: int,
        num_tokens: int,
        width: int = 1024,
        scale: float = 10.0,
        *,
        local: bool = False,
    ) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ModelError(f"projector scale must be a finite number above 0, got {scale}")
        self.audio_dim, self.hidden_size, self.num_tokens = audio_dim, hidden_size, num_tokens
        self.scale, self.local = float(scale), local
        self.heads = width // _HEAD if width % _HEAD == 0 else 1
        self.norm = nn.LayerNorm(audio_dim)
        self.query = nn.Parameter(torch.randn(num_tokens, width) * _QUERY_STD)
        # A key's bias would add the same to every score: softmax would not see it.
        self.key = nn.Linear(audio_dim, width, bias=False) if local else None
        self.value = nn.Linear(audio_dim, width)
        self.out = nn.Linear(width, hidden_size)
        self.amplitude = Amplitude(self.scale)

    def forward(self, features: Tensor) -> Tensor:
        """Resample [B, D] or [B, M, D] finite features to [B, N, H] audio tokens.

        Raises:
            ModelError: wrong rank or width, or, on a CPU, an element that is NaN or infinite.
        """
        check_embeddings(features, self.audio_dim, local=self.local)
        x = self.norm(within_range(features, self.norm.weight.dtype))
        heard = self.value(x)[:, None] if self.key is None else self._attend(x, self.key)
        tokens: Tensor = self.amplitude(self.out(F.gelu(self.query + heard)))
        return tokens

    def _attend(self, x: Tensor, to_key: nn.Linear) -> Tensor:
        """[B, M, D] normalised features to [B, N, width], one mixture per query."""
        key, value = to_key(x + _places(x)), self.value(x)
        query = self.query.to(key.dtype).expand(x.shape[0], -1, -1)
        split = [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (query, key, value)]
        weights = torch.softmax(
            split[0] @ split[1].transpose(-1, -2) * split[0].shape[-1] ** -0.5,
            dim=-1, dtype=torch.float32,
        )  # fmt: skip
        return (weights.to(value.dtype) @ split[2]).transpose(1, 2).flatten(-2)

    def extra_repr(self) -> str:
        """Show the sizes in the printed model."""
        return f"tokens={self.num_tokens}, heads={self.heads}, local={self.local}"


def _places(x: Tensor) -> Tensor:
    """[M, D] sines and cosines of each feature's place, as large as normalised features."""
    count, width = x.shape[-2:]
    place = torch.arange(count, device=x.device, dtype=torch.float32)[:, None]
    rate = torch.arange((width + 1) // 2, device=x.device, dtype=torch.float32)
    angle = place * torch.exp(rate * (-2 * math.log(10_000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[:, :width].to(x.dtype)
