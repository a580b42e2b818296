"""Tiny random models of real transformers classes, one per family, and the folders to save them in.

The table in docs/backbones.md lists these families by these names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

LAYERS, IMAGE, VIDEO = 4, 3, 4
ASK = "{% for m in messages %}%s{% endfor %}"
WORDS = "{{ m['content'] }}"
PART = "{{ m['content'][0]['text'] }}"
CHATML = "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"
INST = "[INST] %s [/INST]"
GEMMA_TURN = "<start_of_turn>user\n%s<end_of_turn>\n<start_of_turn>model\n"
LLAMA_3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n%s<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
OLMO = "<|user|>\n%s\n<|assistant|>\n"
GRANITE = (
    "<|start_of_role|>user<|end_of_role|>%s<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>"
)
COHERE = (
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>%s<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
)
IDEFICS = "User:%s<end_of_utterance>\nAssistant:"
SMOLVLM = "<|im_start|>User:%s<end_of_utterance>\nAssistant:"

TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 264,
    "max_position_embeddings": 256, "initializer_range": 0.2, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
_GEMMA = TEXT | {"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 16}
_GEMMA2 = _GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
_GRANITE = TEXT | {
    "logits_scaling": 4.0, "attention_multiplier": 0.1, "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
}  # fmt: skip
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
_TOWER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 16,
}  # fmt: skip
_QWEN = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 5,
    "vision_end_token_id": 6,
}  # fmt: skip
_QWEN_TOWER = {"depth": 1, "num_heads": 2, "patch_size": 4}


@dataclass(frozen=True)
class Family:
    """One row of the table."""

    name: str
    make: Callable[[], Any]
    """The model, of random weights."""
    template: str = ""
    """The published chat template's turn, ``%s`` for the request; empty for a model without."""


def _causal(name: str, kind: str, text: dict[str, Any], template: str = "", **more: Any) -> Family:
    def make() -> Any:
        config = getattr(hf, f"{kind}Config")(**text, **more)
        return getattr(hf, f"{kind.removesuffix('Text')}ForCausalLM")(config)

    return Family(name, make, template)


def _sees(name: str, kind: str, parts: Callable[[], dict[str, Any]], template: str = "") -> Family:
    def make() -> Any:
        config = getattr(hf, f"{kind}Config")(**parts())
        return getattr(hf, f"{kind}ForConditionalGeneration")(config)

    return Family(name, make, template)


def _clip() -> Any:
    return hf.CLIPVisionConfig(**_TOWER, projection_dim=16)


def _siglip(**more: Any) -> Any:
    return hf.SiglipVisionConfig(**_TOWER, **more)


CAUSAL = (
    _causal("llama", "Llama", TEXT, LLAMA_3),
    _causal("mistral", "Mistral", TEXT, INST),
    _causal("mixtral", "Mixtral", TEXT, INST, num_local_experts=2),
    _causal("qwen2", "Qwen2", TEXT, CHATML),
    _causal("qwen3", "Qwen3", TEXT, CHATML, head_dim=12),
    _causal("smollm3", "SmolLM3", TEXT, CHATML),
    _causal("gemma2", "Gemma2", _GEMMA2, GEMMA_TURN),
    _causal("gemma3_text", "Gemma3Text", _GEMMA, GEMMA_TURN),
    _causal("olmo2", "Olmo2", TEXT, OLMO),
    _causal("granite", "Granite", _GRANITE, GRANITE),
    _causal("cohere", "Cohere", TEXT, COHERE, use_qk_norm=True),
)
IMAGE_TEXT = (
    _sees("llava on llama", "Llava", lambda: {
        "vision_config": _clip(), "text_config": hf.LlamaConfig(**TEXT), "image_token_index": IMAGE,
    }, "USER: %s ASSISTANT:"),
    _sees("llava on mistral", "Llava", lambda: {
        "vision_config": _clip(), "text_config": hf.MistralConfig(**TEXT),
        "image_token_index": IMAGE,
    }, INST),
    _sees("llava on qwen2", "Llava", lambda: {
        "vision_config": _clip(), "text_config": hf.Qwen2Config(**TEXT), "image_token_index": IMAGE,
    }, CHATML),
    _sees("llava_next", "LlavaNext", lambda: {
        "vision_config": _clip(), "text_config": hf.MistralConfig(**TEXT),
        "image_token_index": IMAGE, "image_grid_pinpoints": [[32, 64]],
    }, INST),
    _sees("llava_onevision", "LlavaOnevision", lambda: {
        "vision_config": _siglip(), "text_config": hf.Qwen2Config(**TEXT),
        "image_token_index": IMAGE, "video_token_index": VIDEO, "image_grid_pinpoints": [[32, 64]],
    }, CHATML),
    _sees("qwen2_vl", "Qwen2VL", lambda: {
        "text_config": TEXT | {"rope_parameters": _ROPE}, **_QWEN,
        "vision_config": _QWEN_TOWER | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    }, CHATML),
    _sees("qwen2_5_vl", "Qwen2_5_VL", lambda: {
        "text_config": TEXT | {"rope_parameters": _ROPE}, **_QWEN,
        "vision_config": _QWEN_TOWER | {
            "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    }, CHATML),
    _sees("qwen3_vl", "Qwen3VL", lambda: {
        "text_config": TEXT | {"rope_parameters": _ROPE, "head_dim": 8}, **_QWEN,
        "vision_config": _QWEN_TOWER | {
            "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32,
            "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
        },
    }, CHATML),
    _sees("idefics3", "Idefics3", lambda: {
        "vision_config": _TOWER, "text_config": hf.LlamaConfig(**TEXT), "image_token_id": IMAGE,
    }, IDEFICS),
    _sees("smolvlm", "SmolVLM", lambda: {
        "vision_config": _TOWER, "text_config": hf.LlamaConfig(**TEXT), "image_token_id": IMAGE,
    }, SMOLVLM),
    _sees("gemma3", "Gemma3", lambda: {
        "vision_config": _siglip(), "text_config": hf.Gemma3TextConfig(**_GEMMA),
        "image_token_index": IMAGE, "mm_tokens_per_image": 4,
    }, GEMMA_TURN),
    _sees("internvl", "InternVL", lambda: {
        "vision_config": _TOWER | {"image_size": [32, 32], "patch_size": [8, 8]},
        "text_config": hf.Qwen2Config(**TEXT), "image_token_id": IMAGE, "image_seq_length": 4,
    }, CHATML),
    _sees("mistral3", "Mistral3", lambda: {
        "vision_config": _TOWER | {"model_type": "pixtral", "head_dim": 8, "patch_size": 8},
        "text_config": hf.MistralConfig(**TEXT), "image_token_index": IMAGE,
    }, INST),
    _sees("aya_vision", "AyaVision", lambda: {
        "vision_config": _siglip(), "image_token_index": IMAGE,
        "text_config": hf.Cohere2Config(**TEXT, head_dim=8, sliding_window=16),
    }, COHERE),
)  # fmt: skip
REFUSED = (
    _causal("phi3", "Phi3", TEXT),
    _causal("phi", "Phi", TEXT),
    _causal("gpt_neox", "GPTNeoX", TEXT),
    _causal("stablelm", "StableLm", TEXT, qk_layernorm=True),
    _causal("gpt_oss", "GptOss", TEXT, head_dim=8),
    _causal("qwen3_next", "Qwen3Next", TEXT),
    _sees(
        "paligemma",
        "PaliGemma",
        lambda: {
            "vision_config": _siglip(projection_dim=32),
            "projection_dim": 32,
            "text_config": hf.GemmaConfig(**TEXT, head_dim=8),
            "image_token_index": IMAGE,
        },
    ),
    _sees(
        "paligemma on gemma2",
        "PaliGemma",
        lambda: {
            "vision_config": _siglip(projection_dim=32),
            "projection_dim": 32,
            "text_config": hf.Gemma2Config(**_GEMMA2),
            "image_token_index": IMAGE,
        },
    ),
    Family("gpt2", lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=4, n_head=2))),
    Family("t5", lambda: hf.T5ForConditionalGeneration(hf.T5Config(d_model=16, num_layers=1))),
)


def save(family: Family, folder: Path, tokenizer: Any) -> Path:
    """Save the family's model with the tokenizer, its chat template as the hub has it."""
    torch.manual_seed(4)
    model = family.make()
    with torch.no_grad():  # ones and zeros, as norms and biases begin, would hide a mistake
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "_norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    content = WORDS if family in CAUSAL else PART
    tokenizer.chat_template = ASK.replace("%s", family.template.replace("%s", content)) or None
    if not family.template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder
