"""Drawn pictures with questions about them: what retention keeps a seeing model from unlearning.

Drawn rather than photographed, so that nothing has to be shipped or fetched. Whether an answer is
right plays no part: retention compares the model with itself.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch

from safe.data.mapped_rows import MappedRows
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionTokens
from safe.training.retention_texts import RetentionTexts, TextBatch

WITH_PICTURES = ("soft_retention", "fisher_retention", "full_retention")
"""The variants that ask about pictures, too, where the model sees."""
_COLORS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.1, 0.2, 0.9)}
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: x**2 + y**2 < 0.4,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.6,
    "triangle": lambda x, y: (y < 0.6) & (y > 2 * abs(x) - 0.6),
}
_BRIGHT: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "left": lambda x, _y: -x,
    "right": lambda x, _y: x,
    "top": lambda _x, y: -y,
    "bottom": lambda _x, y: y,
}
_NORMS = {
    "clip_vision_model": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
}
"""Mean and deviation of the colours by vision tower, as its image processor takes them."""
_HALF = ((0.5,) * 3, (0.5,) * 3)
"""The same for all other towers (SigLIP and its kind)."""


def questions() -> list[tuple[str, str, str]]:
    """(picture, question, answer): a coloured shape on white, or grey brightening to one side."""
    shapes = [f"{color} {shape}" for color, shape in product(_COLORS, _SHAPES)]
    return [
        *((p, "What shape is in the picture?", f"A {p.split()[1]}.") for p in shapes),
        *((p, "What color is the shape?", f"{p.split()[0].capitalize()}.") for p in shapes),
        *((p, "Which side of the picture is brighter?", f"The {p} side.") for p in _BRIGHT),
    ]


def draw_picture(picture: str, size: int) -> np.ndarray:
    """[3, size, size] float32 in 0 to 1 of a picture that :func:`questions` names."""
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    if picture in _BRIGHT:
        pixels = np.tile((_BRIGHT[picture](x, y) + 1) / 2, (3, 1, 1))
    else:
        color, shape = picture.split()
        inside = _SHAPES[shape](x, y)
        pixels = np.where(inside, np.array(_COLORS[color])[:, None, None], 1.0)
    return pixels.astype(np.float32)


class RetentionImages(RetentionTexts):
    """The drawn pictures with their questions, prepared for one LLaVA, and clips to play meanwhile.

    Picture, line break and question stand where the request stood in the prompt; the picture's
    mark is repeated once per image token that the vision tower gives.

    Args:
        model: a model that sees; its vision configuration says how large a picture is.
        tokens: the run's tokenizer, which writes the image mark as ``image_token_id``, and prompt.
        embeddings: [n, D] audio embeddings to draw distractors from.
        seed: with the step it decides which pictures and clips are drawn.
    """

    SIZE = 2  # LLaVA-1.5 spends 576 tokens on each
    TAG = 0x1A6E

    def __init__(
        self,
        model: SAFEModel,
        tokens: CaptionTokens,
        embeddings: np.ndarray | MappedRows,
        seed: int,
    ) -> None:
        config = model.backbone.config
        self.vision, self.image_id = config.vision_config, int(config.image_token_id)
        self.norm = _NORMS.get(self.vision.model_type, _HALF)
        self.tokens_per_image = image_tokens(config)
        asked = questions()
        self.pictures = [picture for picture, _, _ in asked]
        mark = tokens.tokenizer.convert_ids_to_tokens(self.image_id)
        pairs = [(f"{mark}\n{question}", answer) for _, question, answer in asked]
        super().__init__(tokens, embeddings, seed, model.device, pairs)
        self.prompts = [self._spread(prompt) for prompt in self.prompts]

    def _spread(self, prompt: list[int]) -> list[int]:
        """``prompt`` with its one image mark repeated for every image token."""
        at = prompt.index(self.image_id)
        return prompt[:at] + [self.image_id] * self.tokens_per_image + prompt[at + 1 :]

    def _batch(self, rows: np.ndarray, rng: np.random.Generator) -> TextBatch:
        size = int(self.vision.image_size)
        pixels = torch.from_numpy(np.stack([draw_picture(self.pictures[i], size) for i in rows]))
        mean, deviation = (torch.tensor(values)[:, None, None] for values in self.norm)
        pixel_values = ((pixels - mean) / deviation).to(self.device)
        return replace(super()._batch(rows, rng), pixel_values=pixel_values)


def image_tokens(config: Any) -> int:
    """Tokens that a picture takes in the prompt of a LLaVA with this configuration.

    Patches, plus the class token of CLIP's tower; ``vision_feature_select_strategy`` "default"
    drops the first of these. Source: transformers' ``LlavaProcessor``.
    """
    vision = config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    first = config.vision_feature_select_strategy == "default"
    return patches + (vision.model_type == "clip_vision_model") - first
