"""The log-mel spectrogram that aiSFX was trained on, in plain torch.

aiSFX's preprocessing is Essentia's: frames of 2048 samples every 1024, centred on their time
with zeros around the clip, a symmetric Hann window, the power spectrum, 96 bands that are
triangles in the HTK mel scale from 0 to 22,050 Hz and sum to one, and log10(10000 x + 1).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLE_RATE = 44_100
FRAME, HOP = 2048, 1024
BANDS = 96
TOP_HZ = 22_050.0


def _to_mel(hz: Tensor) -> Tensor:
    return 1127.01048 * torch.log(1 + hz / 700)


def mel_bank() -> Tensor:
    """Return the filters [1025, 96], float32; each column sums to one."""
    top = _to_mel(torch.tensor(TOP_HZ, dtype=torch.float64))
    edges = torch.linspace(0, 1, BANDS + 2, dtype=torch.float64) * top
    bins = _to_mel(torch.linspace(0, SAMPLE_RATE / 2, FRAME // 2 + 1, dtype=torch.float64))
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    bank = torch.minimum(rising, falling).clamp(min=0)
    return (bank / bank.sum(dim=0)).float()


def log_mel(clip: Tensor, bank: Tensor) -> Tensor:
    """Return the spectrogram [1 + ceil(S / 1024), 96] of a clip [S] at 44,100 Hz.

    Samples beyond [-1, 1] are clipped, as Essentia's loader does.
    """
    frames = 1 + math.ceil(clip.numel() / HOP)
    after = (frames - 1) * HOP + FRAME // 2 - clip.numel()
    padded = F.pad(clip.clamp(-1, 1), (FRAME // 2, after))
    window = torch.hann_window(FRAME, periodic=False, device=clip.device)
    spectrum = torch.stft(padded, FRAME, HOP, window=window, center=False, return_complex=True)
    power = spectrum.abs().square().T
    return torch.log10(1e4 * (power @ bank) + 1)
