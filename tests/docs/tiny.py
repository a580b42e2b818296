"""Published classes, tiny and random, in the hub's folder format."""

from pathlib import Path

import torch
from transformers import (
    ClapAudioConfig,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.models.families import TEXT, Family, save


def save_llava(folder: Path) -> None:
    """LlavaForConditionalGeneration on Llama, as llava-hf/llava-1.5-13b-hf is, 10 layers of 32."""
    from tests.models.conftest import VISION, byte_tokenizer

    def make() -> LlavaForConditionalGeneration:
        text = LlamaConfig(**(TEXT | {"num_hidden_layers": 10}))
        parts = {"text_config": text, "vision_config": CLIPVisionConfig(**VISION)}
        return LlavaForConditionalGeneration(LlavaConfig(**parts, image_token_index=3))

    save(Family("llava on llama", make, "USER: %s ASSISTANT:"), folder, byte_tokenizer())


def save_clap(folder: Path) -> None:
    """ClapAudioModelWithProjection as laion/clap-htsat-unfused is, of 64 channels."""
    torch.manual_seed(0)
    config = ClapAudioConfig(
        patch_embeds_hidden_size=8, hidden_size=64, depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2], projection_dim=512, fusion_num_hidden_layers=1,
    )  # fmt: skip
    ClapAudioModelWithProjection(config).save_pretrained(folder)
    ClapFeatureExtractor(
        sampling_rate=48_000, max_length_s=10, truncation="rand_trunc", padding="repeatpad"
    ).save_pretrained(folder)
