"""Pictures and sounds in one prompt, for LLaVA and LLaVA-NeXT folders in the hub's format.

With the gate shut the model is the bare backbone bit for bit, also with pictures, also left padded.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
)

from configs.errors import ModelError
from configs.schema import ModelConfig
from safe.models.backbones import Backbone, load_backbone
from safe.models.meta import planned_backbone
from safe.models.prompts import LLAVA_15, REQUEST
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionTokens

Maker = Callable[[Backbone], SAFEModel]
IMAGE, AUDIO_DIM, LAYERS = 3, 12, 5
SIDE, PATCH = 32, 16
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 264,
    "max_position_embeddings": 256, "initializer_range": 0.2, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH, "projection_dim": 16,
}  # fmt: skip
PINPOINTS = [[32, 64], [64, 32], [64, 64]]
TEMPLATE = "{% for m in messages %}[INST] {{ m['content'][0]['text'] }} [/INST]{% endfor %}"


def _llava() -> tuple[Any, Any]:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE, image_seq_length=4,
    )  # fmt: skip
    pictures = CLIPImageProcessor(size=SIDE, crop_size=SIDE)
    return LlavaForConditionalGeneration(config), (LlavaProcessor, pictures)


def _llava_next() -> tuple[Any, Any]:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=MistralConfig(**TEXT),
        image_token_index=IMAGE, image_seq_length=4, image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS
    )
    return LlavaNextForConditionalGeneration(config), (LlavaNextProcessor, pictures)


@pytest.fixture(scope="module", params=["llava", "llava_next"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any
) -> Path:
    """A small model with its processor as the hub has them, the weights in several files."""
    path = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(4)
    model, (processor_class, pictures) = {"llava": _llava, "llava_next": _llava_next}[
        request.param
    ]()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    if request.param == "llava_next":
        tokenizer.chat_template = TEMPLATE
    processor = processor_class(
        image_processor=pictures, tokenizer=tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    model.save_pretrained(path, max_shard_size="60KB")
    processor.save_pretrained(path)
    return path


def inputs(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two prompts of unlike length with a picture each, left padded by the model's processor."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    shapes = ((40, 60, 3), (70, 33, 3))
    images = [Image.fromarray(rng.integers(0, 255, s, dtype=np.uint8)) for s in shapes]
    texts = ["USER: <image>\nWhat is this? ASSISTANT:", "USER: <image>\nHm? ASSISTANT:"]
    processor.tokenizer.padding_side = "left"
    found = processor(text=texts, images=images, padding=True, return_tensors="pt")
    assert found["attention_mask"][1, 0] == 0 and bool(found["attention_mask"][:, -1].all())
    found["pixel_values"] = found["pixel_values"].to(dtype)
    return dict(found)


@pytest.fixture
def model_of(make_config: Callable[..., ModelConfig]) -> Maker:
    """model_of(backbone) -> SAFEModel whose audio is loud."""

    def make(backbone: Backbone) -> SAFEModel:
        torch.manual_seed(0)
        model = SAFEModel(backbone, make_config())
        with torch.no_grad():
            for name, parameter in model.fusion.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.3)
        return model

    return make


def test_weights_in_several_files(folder: Path) -> None:
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and (folder / "model.safetensors.index.json").is_file()
    backbone = load_backbone(str(folder), dtype="float32")
    direct = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(backbone.model) is type(direct)
    theirs = direct.state_dict()
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    assert backbone.num_layers == LAYERS
    backbone.assert_frozen()


def test_a_missing_file_is_an_error(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(folder, tmp_path / "broken")
    next(broken.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match=r"weight files \(model-00002.*not in"):
        load_backbone(str(broken), dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gate_off_with_pictures_is_the_bare_backbone_bit_for_bit(
    folder: Path, dtype: Any, model_of: Maker
) -> None:
    batch = inputs(folder, getattr(torch, dtype))
    bare = load_backbone(str(folder), dtype=dtype).model
    model = model_of(load_backbone(str(folder), dtype=dtype))
    audio = torch.randn(2, AUDIO_DIM)
    with torch.no_grad():
        expected = bare(**batch).logits
        heard = model(**batch, audio=audio).logits
        model.set_gate(0.0)
        shut, silent = model(**batch, audio=audio).logits, model(**batch).logits
    assert torch.equal(shut, expected) and torch.equal(silent, expected)
    assert (heard - expected).abs().max() > 0.1


@pytest.mark.parametrize("beams", [1, 2])
def test_gate_off_generates_what_the_bare_backbone_does(
    folder: Path, beams: int, model_of: Maker
) -> None:
    batch = inputs(folder)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    bare = load_backbone(str(folder), dtype="float32").model
    model = model_of(load_backbone(str(folder), dtype="float32"))
    audio = torch.randn(2, AUDIO_DIM)
    expected = bare.generate(**batch, **options)
    heard = model.generate(**batch, audio=audio, **options)
    model.set_gate(0.0)
    assert torch.equal(model.generate(**batch, audio=audio, **options), expected)
    assert not torch.equal(heard, expected)


def test_picture_and_sound_both_count(folder: Path, model_of: Maker) -> None:
    """Each changes what follows, and padding on the left does not."""
    batch, audio = inputs(folder), torch.randn(2, AUDIO_DIM)
    model = model_of(load_backbone(str(folder), dtype="float32"))
    with torch.no_grad():
        both = model(**batch, audio=audio).logits[:, -1]
        other = {**batch, "pixel_values": -batch["pixel_values"]}
        assert (model(**other, audio=audio).logits[:, -1] - both).abs().max() > 1e-3
        assert (model(**batch, audio=-audio).logits[:, -1] - both).abs().max() > 1e-3
        start = int((batch["attention_mask"][1] == 0).sum())
        alone = {name: x[1:] for name, x in batch.items()}
        alone |= {name: alone[name][:, start:] for name in ("input_ids", "attention_mask")}
        # worst case measured 3.6e-6, of logits up to 4
        assert (model(**alone, audio=audio[1:]).logits[:, -1] - both[1:]).abs().max() < 1e-4


def test_prompt_by_family(folder: Path) -> None:
    """LLaVA-1.5's own words; LLaVA-NeXT's from its chat template, which wants a list of parts."""
    backbone = load_backbone(str(folder), dtype="float32")
    own = {"llava": LLAVA_15, "llava_next": f"[INST] {REQUEST} [/INST]"}[folder.name]
    assert backbone.prompt == own == planned_backbone(str(folder), "float32").prompt
    assert CaptionTokens(backbone.tokenizer, backbone.prompt).prompt_ids


def test_planned_without_weights(folder: Path, tmp_path: Path) -> None:
    real = load_backbone(str(folder), dtype="bfloat16").model
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    planned = planned_backbone(str(tmp_path), "bfloat16").model
    own = {n: (p.shape, p.dtype) for n, p in real.named_parameters()}
    assert {n: (p.shape, p.dtype) for n, p in planned.named_parameters()} == own
    assert all(p.is_meta for p in planned.parameters())
    assert json.loads((folder / "config.json").read_text())["model_type"] == folder.name
