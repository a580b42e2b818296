"""Tiny backbones with random weights, built anew by every call because models are mutable."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.schema import FusionConfig, ModelConfig, ProjectorConfig
from safe.models.backbones import Backbone, backbone_from_causal_lm
from safe.models.safe_model import SAFEModel

HIDDEN, LAYERS, AUDIO_DIM = 32, 5, 12
PROMPT = "USER: Describe the sound. ASSISTANT:"
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped: two query heads share a key/value head
    "vocab_size": 264,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large enough that the logits of random weights differ clearly
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "projection_dim": 16,
}

BackboneMaker = Callable[..., Backbone]
ModelMaker = Callable[..., SAFEModel]


def byte_tokenizer() -> Any:
    """A tokenizer that knows any text: one token per byte, with <s>, </s>, <pad>, <image>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def llava_backbone(dtype: torch.dtype = torch.float32, **text: Any) -> Backbone:
    """LLaVA by its own classes: Llama decoder with grouped queries, CLIP vision tower."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(1)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**(TEXT | text)),
        image_token_index=3,
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config).to(dtype)
    return Backbone(model, byte_tokenizer(), "tiny-llava", PROMPT, "tiny-llava@1")


def causal_backbone(dtype: torch.dtype = torch.float32, **text: Any) -> Backbone:
    """A Qwen2 language model (biases on q, k, v) put into the LLaVA class."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(2)
    lm = Qwen2ForCausalLM(Qwen2Config(**(TEXT | text))).to(dtype)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.2)
    return backbone_from_causal_lm(lm, byte_tokenizer(), "tiny-causal", prompt=PROMPT)


def tiny_config(**changes: Any) -> ModelConfig:
    """A model configuration for the tiny backbones; fields of projector and fusion by name."""
    fusion = FusionConfig(layers=(1, 3), lora_rank=4, gate_init=0.3, gate_max=1.0)
    projector = ProjectorConfig(bottleneck_dim=16, num_tokens=6, min_tokens=2, scale=2.0)
    config = ModelConfig(
        backbone="tiny", hidden_size=HIDDEN, num_layers=LAYERS, audio_encoder="none",
        audio_dim=AUDIO_DIM, dtype="float32",
        fusion=replace(fusion, **changes.pop("fusion", {})),
        projector=replace(projector, **changes.pop("projector", {})),
    )  # fmt: skip
    return replace(config, **changes)


def excite(model: SAFEModel) -> SAFEModel:
    """Give every trainable a random value, so that no path is silent by its initialisation."""
    with torch.no_grad():
        for name, parameter in model.fusion.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
        for block in model.fusion.blocks().values():
            block.residual.residual_scale.uniform_(0.3, 0.6)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def make_backbone() -> BackboneMaker:
    """make_backbone("llava" | "causal", dtype=..., **text config) -> Backbone."""
    kinds = {"llava": llava_backbone, "causal": causal_backbone}
    return lambda kind="llava", **options: kinds[kind](**options)


@pytest.fixture(scope="session")
def make_model(make_backbone: BackboneMaker) -> ModelMaker:
    """make_model(kind, dtype=..., excited=True, seed=0, **config changes) -> SAFEModel."""

    def make(
        kind: str = "llava",
        dtype: torch.dtype = torch.float32,
        excited: bool = True,
        seed: int = 0,
        **changes: Any,
    ) -> SAFEModel:
        backbone = make_backbone(kind, dtype=dtype)
        torch.manual_seed(seed)
        model = SAFEModel(backbone, tiny_config(**changes))
        return excite(model) if excited else model

    return make


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    return tiny_config


@pytest.fixture(scope="session")
def text_batch() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """text_batch(lengths, left=False) -> ids and mask [B, T], padded right or left."""

    def make(
        lengths: tuple[int, ...] = (9, 6, 4), left: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        width = max(lengths)
        ids = torch.randint(4, 260, (len(lengths), width), generator=generator)
        place = torch.arange(width)
        mask = torch.stack([(place >= width - n) if left else (place < n) for n in lengths])
        return ids.masked_fill(~mask, 2), mask.long()

    return make


@pytest.fixture(scope="session")
def audio_batch() -> Callable[[int], torch.Tensor]:
    """audio_batch(B) -> [B, D] audio embeddings."""
    return lambda count: torch.randn(count, AUDIO_DIM, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def with_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """with_pickle(folder) -> a copy with its weights as a pickle, too; opening one fails."""
    monkeypatch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("a pickle was opened"))

    def copy(folder: Path) -> Path:
        found = Path(shutil.copytree(folder, tmp_path / "pickled"))
        torch.save(load_file(found / "model.safetensors"), found / "pytorch_model.bin")
        return found

    return copy
