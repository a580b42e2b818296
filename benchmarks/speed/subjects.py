"""What is measured: a language model as it comes, and the same one with ears."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

from configs.adapt import adapt_to_backbone
from configs.model_configs import get_config
from configs.schema import RunConfig
from safe.models.backbones import Backbone, Dtype, load_backbone, weights_available
from safe.models.safe_model import IGNORED, SAFEModel

SHAPES = ((8, 64), (1, 1))


@dataclass(frozen=True, eq=False)
class Subject:
    """A frozen backbone and a SAFEModel of Phase 1's shape around it."""

    name: str
    backbone: Backbone
    config: RunConfig
    model: SAFEModel

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.model.device

    @property
    def lm(self) -> nn.Module:
        """The backbone alone, called with token ids."""
        return self.backbone.model

    def ids(self, rows: int, length: int) -> Tensor:
        """[rows, length] random ids that mean no picture."""
        size = min(self.backbone.text_config.vocab_size, 2000)
        ids = torch.randint(10, size, (rows, length), generator=torch.Generator().manual_seed(0))
        return ids.to(self.device)

    def batch(self, rows: int, length: int) -> dict[str, Any]:
        """Inputs of the SAFEModel: a quarter of each text is supervised, some rows are padded."""
        ids = self.ids(rows, length)
        mask, labels = torch.ones_like(ids), ids.clone()
        if length > 1:
            mask[1::2, -length // 8 :] = 0
            labels[:, : 3 * length // 4] = IGNORED
        labels[mask == 0] = IGNORED
        audio = torch.nn.functional.normalize(torch.randn(rows, 512, device=self.device), dim=-1)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "audio": audio}


def available() -> list[str]:
    """The small backbones on this machine; SmolLM2 after ``safe-train fetch smollm2``."""
    return [name for name in ("embedded", "smollm2") if weights_available(name)]


def subject(name: str, device: str = "cpu", dtype: Dtype = "float32") -> Subject:
    """Load one, with frozen weights of ``dtype`` and trainable ones of float32, on a device."""
    torch.manual_seed(0)
    backbone = load_backbone(name, dtype=dtype)
    config, _ = adapt_to_backbone(
        get_config("phase1"), backbone.hidden_size, backbone.num_layers, name
    )
    optim = replace(config.optim, precision="no" if dtype == "float32" else "bf16")
    config = replace(config, optim=optim)
    return Subject(name, backbone, config, SAFEModel(backbone, config.model).to(device))


def published_clap(folder: Path) -> str:
    """Save a CLAP of the published size, for ``load_audio_encoder``.

    Its weights are random: what it hears means nothing, and takes as long.
    """
    torch.manual_seed(0)
    ClapAudioModelWithProjection(ClapAudioConfig(projection_dim=512)).save_pretrained(folder)
    ClapFeatureExtractor(
        sampling_rate=48_000, max_length_s=10, truncation="rand_trunc", padding="repeatpad"
    ).save_pretrained(folder)
    return f"hf:{folder}"
