"""What is measured: a language model as it comes, and the same one with ears."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from configs.adapt import adapt_to_backbone
from configs.model_configs import get_config
from configs.schema import RunConfig
from safe.models.backbones import Backbone, load_backbone, weights_available
from safe.models.safe_model import IGNORED, SAFEModel

SHAPES = ((8, 64), (1, 1))


@dataclass(frozen=True, eq=False)
class Subject:
    """A frozen backbone in float32 and a SAFEModel of Phase 1's shape around it."""

    name: str
    backbone: Backbone
    config: RunConfig
    model: SAFEModel

    @property
    def lm(self) -> nn.Module:
        """The backbone alone, called with token ids."""
        return self.backbone.model

    def ids(self, rows: int, length: int) -> Tensor:
        """[rows, length] random ids that mean no picture."""
        size = min(self.backbone.text_config.vocab_size, 2000)
        return torch.randint(10, size, (rows, length), generator=torch.Generator().manual_seed(0))

    def batch(self, rows: int, length: int) -> dict[str, Any]:
        """Inputs of the SAFEModel: a quarter of each text is supervised, some rows are padded."""
        ids = self.ids(rows, length)
        mask, labels = torch.ones_like(ids), ids.clone()
        if length > 1:
            mask[1::2, -length // 8 :] = 0
            labels[:, : 3 * length // 4] = IGNORED
        labels[mask == 0] = IGNORED
        audio = torch.nn.functional.normalize(torch.randn(rows, 512), dim=-1)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "audio": audio}


def available() -> list[str]:
    """The small backbones on this machine; SmolLM2 after ``safe-train fetch smollm2``."""
    return [name for name in ("embedded", "smollm2") if weights_available(name)]


def subject(name: str) -> Subject:
    """Load one."""
    torch.manual_seed(0)
    backbone = load_backbone(name, dtype="float32")
    config, _ = adapt_to_backbone(
        get_config("phase1"), backbone.hidden_size, backbone.num_layers, name
    )
    config = replace(config, optim=replace(config.optim, precision="no"))
    return Subject(name, backbone, config, SAFEModel(backbone, config.model))
