"""The log-mel spectrogram of laion-clap's fusion checkpoints, in plain torch.

The package computes it with torchaudio, outside the model (``training.data.get_mel``): a periodic
Hann window of 1024 samples every 480, reflected at the ends, the power spectrum, 64 triangles in
the HTK mel scale from 50 to 14,000 Hz that are not normalised, and decibels down to -100.
"""

import torch
from torch import Tensor

_RATE, _WINDOW, _HOP, _BANDS, _LOW, _HIGH = 48_000, 1024, 480, 64, 50.0, 14_000.0


def fusion_mel(waves: Tensor) -> Tensor:
    """Return the spectrograms [B, 1 + S // 480, 64] of clips [B, S] at 48 kHz."""
    window = torch.hann_window(_WINDOW, device=waves.device)
    spectrum = torch.stft(waves, _WINDOW, _HOP, window=window, return_complex=True)
    power = spectrum.abs().square().transpose(1, 2)
    return 10 * torch.log10((power @ _bank().to(power)).clamp(min=1e-10))


def _bank() -> Tensor:
    """Return the filters [513, 64]."""
    top = 2595 * torch.log10(1 + torch.tensor([_LOW, _HIGH], dtype=torch.float64) / 700)
    mels = torch.linspace(0, 1, _BANDS + 2, dtype=torch.float64) * (top[1] - top[0]) + top[0]
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.linspace(0, _RATE / 2, _WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()
