"""aiSFX: a CNN that learned from sound-effect libraries (Ma and Lerch, ISMIR 2022)."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from configs.errors import ModelError
from safe.fetch import fetched_path
from safe.models.audio_encoders.base import FrozenEncoder
from safe.models.audio_encoders.checkpoint import load_exactly, open_checkpoint, part_of
from safe.models.audio_encoders.mel import SAMPLE_RATE, log_mel, mel_bank
from safe.models.digest import file_digest

_CODE_SHA256 = "74b342b9c0cd9a513da3ce8544e890d297ec8bb34e4c7e773fffc6912b0657b1"
_NET = ("max", 3, 1, 64)
"""Pooling, kernel, stride and first width of the published model, X-Sequential-CE."""
_BLOCK, _HOP = 100, 50
"""Frames of one window (2.3 s) and from one window to the next, as the package has them."""
_LOUDEST = 9.457798957824707
"""Largest value in the package's training spectrograms; they are divided by it."""
_WINDOWS_AT_ONCE = 32
_WEIGHTS = "0/embedding_net."


class AiSFX(FrozenEncoder):
    """The embedding network of the fetched aisfx wheel, with its preprocessing in torch.

    A clip is cut into windows of 100 frames every 50; a last incomplete window is left out and a
    clip shorter than one window is filled with zeros, as the package does by default. The window
    embeddings are averaged and the mean is L2-normalised (the package leaves both to its user).
    At most the middle 10 seconds are heard.

    Raises:
        ModelError: not fetched, or the files are not those that were fetched.
    """

    local_shape = (7, 512)

    def __init__(self) -> None:
        folder = fetched_path("aisfx")
        path = folder / "checkpoint.pth"
        super().__init__("aisfx", f"aisfx@{file_digest([path])}", SAMPLE_RATE, max_seconds=10.0)
        self.net = _code(folder / "cnn2d.py").EmbeddingNet(*_NET)
        # A pair of weights and classes; the rest ("fc.") are the training sets' own classifiers.
        weights = part_of(open_checkpoint(path, (_WEIGHTS,)), _WEIGHTS)
        load_exactly(self.net, weights, "aiSFX's checkpoint")
        self.register_buffer("bank", mel_bank(), persistent=False)
        self.freeze()

    def _embed(self, clips: list[Tensor]) -> Tensor:
        return torch.stack([own.mean(dim=0) for own in self._by_window(clips)])

    def local(self, clips: list[Tensor]) -> Tensor:
        """Return [B, 7, 512]: each window's embedding, of the clip filled with zeros to 10 s."""
        longest = int(self.max_seconds * self.sample_rate)
        filled = [F.pad(clip, (0, longest - clip.numel())) for clip in clips]
        return torch.stack(self._by_window(filled))

    def _by_window(self, clips: list[Tensor]) -> list[Tensor]:
        """Return the embeddings [W, 512] of each clip's windows."""
        bank = self.get_buffer("bank")
        windows = [_windows(log_mel(clip.to(bank.device), bank) / _LOUDEST) for clip in clips]
        every = torch.cat(windows)
        embedded = torch.cat([self.net(part) for part in every.split(_WINDOWS_AT_ONCE)])
        return list(embedded.split([len(own) for own in windows]))


def _windows(mel: Tensor) -> Tensor:
    """Return the windows [W, 100, 96] of a spectrogram [frames, 96]."""
    short = _BLOCK - mel.shape[0]
    if short > 0:
        mel = F.pad(mel, (0, 0, 0, short))
    return mel.unfold(0, _BLOCK, _HOP).transpose(1, 2)


def _code(path: Path) -> Any:
    """Run the network's source file, if it is the known one, without importing its package.

    The package's ``__init__`` imports modules that need other libraries.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _CODE_SHA256:
        raise ModelError(
            f"{path} was changed (SHA-256 {found}); delete its folder and run "
            "`safe-train fetch aisfx` again"
        )
    spec = importlib.util.spec_from_file_location("_aisfx_cnn2d", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
