"""LLaVA-1.5 as it is shipped, built without weights: for counting and for planning memory."""

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from configs.errors import ModelError, did_you_mean

_SIZES: dict[str, dict[str, Any]] = {
    "llava-hf/llava-1.5-7b-hf": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "llava-hf/llava-1.5-13b-hf": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
}


def llava_15_config(name: str) -> LlavaConfig:
    """Return the configuration of LLaVA-1.5 7B or 13B without asking the hub.

    Raises:
        ModelError: another name; the known ones are listed.
    """
    if name not in _SIZES:
        known = ", ".join(_SIZES)
        hint = did_you_mean(name, _SIZES)
        raise ModelError(f"no built-in architecture {name!r}{hint}; known: {known}")
    text = LlamaConfig(
        vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5, **_SIZES[name]
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000)


def llava_15_on_meta(name: str) -> LlavaForConditionalGeneration:
    """Return LLaVA-1.5 7B or 13B on torch's meta device: shapes and names, no memory.

    Raises:
        ModelError: another name.
    """
    config = llava_15_config(name)
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)
