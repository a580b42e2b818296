"""CLAP's audio half as transformers has it, for the embedded encoder and any other."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

from configs.errors import ModelError
from safe.models.audio_encoders.base import EMBEDDING_WIDTH, WAYS_OUT, FrozenEncoder
from safe.models.audio_encoders.local import in_order_of_time
from safe.models.digest import file_digest
from safe.models.hub import (
    check_shards,
    looks_like_folder,
    model_folder,
    quiet_transformers,
    weight_files,
)


class TransformersClap(FrozenEncoder):
    """``ClapAudioModelWithProjection`` with its feature extractor.

    Clips longer than the extractor's window are cropped to its middle before the extractor sees
    them, so that its own random crop never happens; shorter ones are filled by the extractor's
    own rule (``repeatpad`` in all published CLAPs: whole repeats, then zeros). The projected
    embeddings are then L2-normalised, as CLAP's similarity does.

    Args:
        name: the name it was asked for.
        where: folder or hub name of a CLAP (audio half or whole model).

    Raises:
        ModelError: not found, audio weights missing or pickled, or another embedding width than
            512.
    """

    def __init__(self, name: str, where: str) -> None:
        folder = model_folder(where, WAYS_OUT)
        extractor, model = _load(name, folder)
        seconds = extractor.nb_max_samples / extractor.sampling_rate
        # A folder may move: its own name is enough beside the hash of what lies in it.
        label = f"hf:{folder.name}" if name.startswith("hf:") and looks_like_folder(where) else name
        weights = f"{label}@{file_digest(weight_files(folder))}"
        super().__init__(name, weights, extractor.sampling_rate, seconds)
        self.padding = extractor.padding
        self._extractor = extractor
        self.model = model
        self.local_shape = _grid(model.config)
        self.freeze()

    def _embed(self, clips: list[Tensor]) -> Tensor:
        embeds: Tensor = self.model(**self._inputs(clips)).audio_embeds
        return embeds

    def local(self, clips: list[Tensor]) -> Tensor:
        """Return [B, M, D]: HTSAT's last grid of features, 32 moments by 2 bands in CLAP's."""
        grid = self.model.audio_model(**self._inputs(clips)).last_hidden_state
        return in_order_of_time(grid)

    def _inputs(self, clips: list[Tensor]) -> dict[str, Tensor]:
        device = self.model.device
        features = self._extractor(
            [clip.cpu().numpy().astype(np.float64) for clip in clips],
            sampling_rate=self.sample_rate,
            return_tensors="pt",
        )
        # A fusion extractor marks a random short clip as long; here no clip is ever too long.
        longer = torch.zeros(len(clips), 1, dtype=torch.bool, device=device)
        mel = features["input_features"].to(device=device, dtype=self.model.dtype)
        return {"input_features": mel, "is_longer": longer}


def _grid(config: ClapAudioConfig) -> tuple[int, int]:
    """Return number and width of the features that the last stage leaves."""
    stride: Any = config.patch_stride
    side = config.spec_size // stride[0] // 2 ** (len(config.depths) - 1)
    return side * side, config.hidden_size


def _load(name: str, folder: Path) -> tuple[ClapFeatureExtractor, ClapAudioModelWithProjection]:
    check_shards(name, folder)
    loader: Any = ClapAudioModelWithProjection
    try:
        with quiet_transformers():
            extractor = ClapFeatureExtractor.from_pretrained(folder)
            model, info = loader.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{name}: not a CLAP that can be loaded ({reason}); {WAYS_OUT}") from error
    audio = ("audio_model.", "audio_projection.")  # the rest of a whole CLAP is its text half
    unknown = [key for key in info["unexpected_keys"] if key.startswith(audio)]
    for problem, keys in (("lacks", info["missing_keys"]), ("has unknown", unknown)):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise ModelError(f"{name}: {folder} {problem} audio weights: {some}, ...; {WAYS_OUT}")
    if model.config.projection_dim != EMBEDDING_WIDTH:
        raise ModelError(
            f"{name}: embeddings of width {model.config.projection_dim}: must be {EMBEDDING_WIDTH}"
        )
    return extractor, model
