"""The backbone's own pixels as the signal: the reference that audio tokens can be held against."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from configs.errors import ModelError
from probes.context import Context
from probes.findings.facts import Facts
from probes.magnitude import measure
from safe_probe.subject import Subject


@dataclass(frozen=True)
class Vision:
    """Magnitudes of the backbone's own picture tokens."""

    facts: Facts
    """Of the probe ``magnitude``, component ``signal``."""
    trained: bool
    """Whether the vision tower was trained with the language model; a random one is no evidence."""

    def to_json(self) -> dict[str, Any]:
        """Ratio of L2 per token to that of text, at the input and after each decoder layer."""
        value = self.facts.value("magnitude", "signal", "l2_to_text")
        layers = self.facts.layers("magnitude", "signal", "l2_to_text")
        return {"trained": self.trained, "l2_to_text": value, "layers": layers}


def vision_beside(subject: Subject) -> Vision | None:
    """Measure the pictures' tokens on the subject's first batch; None where there are none."""
    experiment = subject.experiment
    if experiment is None or subject.signal != "audio" or not _is_llava(experiment.model.backbone):
        return None
    seeing = vision_subject(replace(subject, batches=subject.batches[:1]))
    context = Context.of(seeing.model, seeing.batches, signal="vision")
    return Vision(Facts(measure(context)), experiment.model.sees)


def vision_subject(subject: Subject) -> Subject:
    """The bare backbone with synthetic images in front of the subject's captions.

    Args:
        subject: gives backbone and captions.

    Raises:
        ModelError: the backbone is no LLaVA.
    """
    experiment = subject.experiment
    assert experiment is not None
    backbone = experiment.model.backbone
    if not _is_llava(backbone):
        raise ModelError(
            f"backbone {experiment.model.name} is a {backbone.config.model_type}, and pictures are "
            "made here for model type llava only; take a LLaVA, or safe_probe.diagnose with your "
            "own batches"
        )
    batches = [_with_images(batch, backbone, seed) for seed, batch in enumerate(subject.batches)]
    about = {**subject.about, "signal": "vision", "images": "synthetic"}
    return replace(
        subject, model=backbone, batches=batches, about=about, signal="vision", optimizer=None,
        start={}, silence=None, pictures=None, further=(),
    )  # fmt: skip


def _is_llava(backbone: Any) -> bool:
    """LLaVA itself: its relatives cut pictures into tiles in ways of their own."""
    return bool(backbone.config.model_type == "llava")


def _with_images(batch: Any, backbone: Any, seed: int) -> dict[str, Tensor]:
    """One image in front of every text of ``batch``, right after its first token."""
    config = backbone.config
    rows = batch.input_ids.shape[0]
    side = config.vision_config.image_size
    images = torch.full((rows, _tokens_per_image(backbone)), config.image_token_id)

    def insert(text: Tensor, image: Tensor) -> Tensor:
        return torch.cat([text[:, :1], image.to(text), text[:, 1:]], dim=1)

    return {
        "input_ids": insert(batch.input_ids, images),
        "attention_mask": insert(batch.attention_mask, torch.ones_like(images)),
        "labels": insert(batch.labels, torch.full_like(images, -100)),
        "pixel_values": _images(rows, side, seed).to(backbone.dtype),
    }


def _tokens_per_image(backbone: Any) -> int:
    """How many tokens the vision path makes of one image."""
    vision = backbone.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    whole = getattr(backbone.config, "vision_feature_select_strategy", "default") == "full"
    return patches + 1 if whole else patches


def _images(count: int, side: int, seed: int) -> Tensor:
    """[count, 3, side, side] smooth random pictures with the mean 0 and spread 1 of real inputs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    fine = 0.3 * torch.randn(count, 3, side, side, generator=generator)
    return (smooth / smooth.std() + fine) / (1 + 0.3**2) ** 0.5
