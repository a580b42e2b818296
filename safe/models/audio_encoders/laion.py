"""The audio branch of a laion-clap checkpoint, without its text tower."""

import importlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import ModelError
from safe.models.audio_encoders.base import EMBEDDING_WIDTH, FrozenEncoder
from safe.models.audio_encoders.checkpoint import load_exactly, open_checkpoint, part_of
from safe.models.audio_encoders.laion_mel import fusion_mel
from safe.models.audio_encoders.local import in_order_of_time
from safe.models.digest import file_digest

_SIZES = {768: "HTSAT-tiny", 1024: "HTSAT-base"}
"""laion-clap's model configuration by the width of the branch (base: the music_speech ones)."""
_ALIAS = "_laion_clap_module"
"""Name under which the package's inner folder is imported (see `random_branch`)."""
_AUDIO = ("audio_branch.", "audio_projection.")
_FULL_SCALE = 32767.0
_FUSION = "audio_branch.patch_embed.fusion_model."
_BANDS, _MOMENTS = 2, 32
"""The grid of features that HTSAT averages."""


class LaionClap(FrozenEncoder):
    """HTSAT and the audio projection of a published laion-clap checkpoint.

    Clips are treated as ``laion_clap.CLAP_Module`` treats NumPy audio: clipped to [-1, 1],
    rounded towards zero to 16 bits, and filled to 10 seconds by whole repeats, then zeros. Its
    random crop of longer clips is replaced by the middle 10 seconds, so that a fusion checkpoint
    (630k-audioset-fusion-best.pt), which mixes random pieces of longer clips, never has one.
    Embeddings are L2-normalised, as ``get_audio_embedding`` does. 48 kHz; nothing is downloaded.

    Args:
        name: the name it was asked for.
        where: path of a ``.pt`` file such as 630k-audioset-best.pt.

    Raises:
        ModelError: no such file, not a laion-clap checkpoint, or weights of the audio half
            missing or left over (they are listed).
    """

    def __init__(self, name: str, where: str) -> None:
        path = Path(where).expanduser()
        state = _audio_state(path)
        width = _width(path, state)
        config = audio_config(_SIZES[width])
        weights = f"laion-clap:{path.name}@{file_digest([path])}"
        seconds = config.clip_samples / config.sample_rate
        super().__init__(name, weights, config.sample_rate, seconds)
        self._clip_samples = config.clip_samples
        self._fuses = any(key.startswith(_FUSION) for key in state)
        self.audio_branch: Any = random_branch(config, fusion=self._fuses)
        self.local_shape = (_MOMENTS * _BANDS, width)
        self.audio_projection = nn.Sequential(
            nn.Linear(width, EMBEDDING_WIDTH),
            nn.ReLU(),
            nn.Linear(EMBEDDING_WIDTH, EMBEDDING_WIDTH),
        )
        load_exactly(self, state, f"the audio half of {path}")
        self.freeze()

    def _embed(self, clips: list[Tensor]) -> Tensor:
        embedded: Tensor = self.audio_projection(self._branch(clips)["embedding"])
        return embedded

    def local(self, clips: list[Tensor]) -> Tensor:
        """Return [B, 64, D]: what HTSAT averages, 32 moments by 2 bands."""
        pooled: list[Tensor] = []
        handle = self.audio_branch.avgpool.register_forward_pre_hook(
            lambda _module, inputs: pooled.append(inputs[0])
        )
        try:
            self._branch(clips)
        finally:
            handle.remove()
        return in_order_of_time(pooled[0].unflatten(2, (_BANDS, _MOMENTS)))

    def _branch(self, clips: list[Tensor]) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        filled = [_fill(as_16_bit(clip), self._clip_samples) for clip in clips]
        waves = torch.stack(filled).to(device)
        batch = {"waveform": waves}
        if self._fuses:
            four = fusion_mel(waves)[:, None].expand(-1, 4, -1, -1)  # the package's, when no longer
            longer = torch.zeros(len(clips), 1, dtype=torch.bool, device=device)
            batch = {"mel_fusion": four, "longer": longer}
        heard: dict[str, Tensor] = self.audio_branch(batch, device=device)
        return heard


def as_16_bit(clip: Tensor) -> Tensor:
    """Round a clip towards zero to 16 bits, as the package does with NumPy audio."""
    return (clip.clamp(-1, 1) * _FULL_SCALE).to(torch.int16) / _FULL_SCALE


def _fill(clip: Tensor, samples: int) -> Tensor:
    """Repeat a clip as often as it fits whole into ``samples``, and pad with zeros."""
    repeated = clip.repeat(samples // clip.numel())
    return F.pad(repeated, (0, samples - repeated.numel()))


def _audio_state(path: Path) -> dict[str, Tensor]:
    """Return the weights of the audio half, by laion-clap's own names.

    Everything else in the file is ignored by name: the text tower (``text_branch``,
    ``text_projection``, ``text_transform``), the heads of the training loss
    (``audio_transform``, ``logit_scale_*``), optimizer state and counters.
    """
    found = open_checkpoint(path, _AUDIO)
    state = part_of(found, "state_dict/") or found
    if state and all(key.startswith("module.") for key in state):  # saved under DDP
        state = part_of(state, "module.")
    return {key: value for key, value in state.items() if key.startswith(_AUDIO)}


def checkpoint_width(path: Path) -> int:
    """Return the width of a checkpoint's local features, 768 or 1024, without building its branch.

    Raises:
        ModelError: not a laion-clap checkpoint.
    """
    return _width(path, _audio_state(path))


def _width(path: Path, state: dict[str, Tensor]) -> int:
    """Return the width of the audio branch, which tells the architecture."""
    norm = state.get("audio_branch.norm.weight")
    width = 0 if norm is None else norm.shape[0]
    if width not in _SIZES:
        raise ModelError(
            f"{path} has no audio branch of {' or '.join(_SIZES.values())} "
            f"(audio_branch.norm.weight: {'missing' if norm is None else f'width {width}'})"
        )
    return width


def _package_folder() -> Path:
    spec = importlib.util.find_spec("laion_clap")
    if spec is None or spec.origin is None:
        raise ModelError("laion-clap is not installed: pip install laion-clap")
    return Path(spec.origin).parent / "clap_module"


def audio_config(architecture: str) -> SimpleNamespace:
    """Return the mel and clip settings that laion-clap ships for an architecture."""
    path = _package_folder() / "model_configs" / f"{architecture}.json"
    return SimpleNamespace(**json.loads(path.read_text(encoding="utf-8"))["audio_cfg"])


def random_branch(config: SimpleNamespace, *, fusion: bool = False) -> nn.Module:
    """Return laion-clap's HTSAT audio branch for an audio configuration, untrained.

    With ``fusion`` it is the one of the fusion checkpoints (kind aff_2d, as in the package's hook).

    ``import laion_clap`` takes seconds (transformers, webdataset and others), leaves a folder on
    sys.path that makes names as general as ``training`` importable, and pulls in the text tower.
    Its inner folder, imported as a package of its own, has none of that.
    """
    if _ALIAS not in sys.modules:
        package = ModuleType(_ALIAS)
        package.__path__ = [str(_package_folder())]
        sys.modules[_ALIAS] = package
    with warnings.catch_warnings():  # from libraries that it imports, and torch.meshgrid
        warnings.simplefilter("ignore")
        make = importlib.import_module(f"{_ALIAS}.htsat").create_htsat_model
        branch: nn.Module = make(config, fusion, "aff_2d" if fusion else "None")
    return branch
