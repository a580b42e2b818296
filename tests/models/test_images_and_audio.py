"""Pictures and sounds in one prompt, for folders of four families in the hub's format.

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
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
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


def _with_marks(tokenizer: Any, **marks: str) -> Any:
    """The tokenizer with further special tokens, ids 260 and on; named, as processors want them."""
    return PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(tokenizer._tokenizer), bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", extra_special_tokens=marks, chat_template=TEMPLATE,
    )  # fmt: skip


def _llava(tokenizer: Any) -> tuple[Any, Any]:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE, image_seq_length=4,
    )  # fmt: skip
    pictures = CLIPImageProcessor(size=SIDE, crop_size=SIDE)
    return LlavaForConditionalGeneration(config), _llava_processor(
        LlavaProcessor, pictures, tokenizer
    )


def _llava_next(tokenizer: Any) -> tuple[Any, Any]:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=MistralConfig(**TEXT),
        image_token_index=IMAGE, image_seq_length=4, image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS
    )
    return LlavaNextForConditionalGeneration(config), _llava_processor(
        LlavaNextProcessor, pictures, tokenizer
    )


def _llava_processor(kind: Any, pictures: Any, tokenizer: Any) -> Any:
    return kind(
        image_processor=pictures, tokenizer=_with_marks(tokenizer, image_token="<image>"),
        patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def _qwen2_vl(tokenizer: Any) -> tuple[Any, Any]:
    """Positions in three dimensions; pictures of every size, as a list of patches."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    tower = {"depth": 1, "num_heads": 2, "patch_size": 4, "embed_dim": 16, "hidden_size": 32}
    config = Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": rope}, vision_config=tower | {"mlp_ratio": 2},
        image_token_id=260, video_token_id=261, vision_start_token_id=262, vision_end_token_id=263,
    )  # fmt: skip
    marked = _with_marks(
        tokenizer, image_token="<|image_pad|>", video_token="<|video_pad|>",
        start="<|vision_start|>", end="<|vision_end|>",
    )  # fmt: skip
    sizes: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes, min_pixels=64, max_pixels=1024), marked,
        Qwen2VLVideoProcessor(**sizes),
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config), processor


def _gemma3(tokenizer: Any) -> tuple[Any, Any]:
    """Attention in both directions inside a picture, by token types."""
    gemma = TEXT | {"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 16}
    tower = {key: value for key, value in VISION.items() if key != "projection_dim"}
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**tower), text_config=Gemma3TextConfig(**gemma),
        mm_tokens_per_image=4, boi_token_index=260, image_token_index=261, eoi_token_index=262,
    )  # fmt: skip
    marked = _with_marks(
        tokenizer, boi_token="<start_of_image>", image_token="<image_soft_token>",
        eoi_token="<end_of_image>",
    )  # fmt: skip
    pictures = Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    model = Gemma3ForConditionalGeneration(config)
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    torch.nn.init.normal_(projection, std=0.05)  # transformers begins with zeros
    return model, Gemma3Processor(pictures, marked, image_seq_length=4)


KINDS: dict[str, tuple[Callable[[Any], tuple[Any, Any]], str]] = {
    "llava": (_llava, "<image>"),
    "llava_next": (_llava_next, "<image>"),
    "qwen2_vl": (_qwen2_vl, "<|vision_start|><|image_pad|><|vision_end|>"),
    "gemma3": (_gemma3, "<start_of_image>"),
}
"""How a family is made, and what stands for a picture in its prompts."""


@pytest.fixture(scope="module", params=KINDS)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any
) -> Path:
    """A small model with its processor as the hub has them, the weights in several files."""
    path = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(4)
    model, processor = KINDS[request.param][0](tokenizer)
    model.save_pretrained(path, max_shard_size="60KB")
    processor.save_pretrained(path)
    return path


def inputs(
    folder: Path, dtype: torch.dtype = torch.float32, rows: slice = slice(None)
) -> dict[str, Tensor]:
    """Two prompts of unlike length with a picture each, left padded by the model's processor."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    shapes = ((40, 60, 3), (70, 33, 3))
    images = [Image.fromarray(rng.integers(0, 255, s, dtype=np.uint8)) for s in shapes]
    words = ("What is this, if I may ask? ASSISTANT:", "Hm? ASSISTANT:")
    texts = [f"USER: {KINDS[folder.name][1]}\n{text}" for text in words]
    processor.tokenizer.padding_side = "left"
    pictures = [[image] for image in images] if folder.name == "gemma3" else images
    found = processor(text=texts[rows], images=pictures[rows], padding=True, return_tensors="pt")
    found["pixel_values"] = found["pixel_values"].to(dtype)
    return dict(found)


def test_padding_is_on_the_left(folder: Path) -> None:
    mask = inputs(folder)["attention_mask"]
    assert bool(mask[:, -1].all()) and not bool(mask[:, 0].all())


@pytest.fixture
def model_of(make_config: Callable[..., ModelConfig]) -> Maker:
    """model_of(backbone, ...) -> SAFEModel whose audio is loud."""

    def make(backbone: Backbone, **config: Any) -> SAFEModel:
        torch.manual_seed(0)
        model = SAFEModel(backbone, make_config(**config))
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
    options |= {"return_dict_in_generate": True, "output_logits": True}
    bare = load_backbone(str(folder), dtype="float32").model
    model = model_of(load_backbone(str(folder), dtype="float32"))
    audio = torch.randn(2, AUDIO_DIM)
    expected = bare.generate(**batch, **options)
    heard = model.generate(**batch, audio=audio, **options)
    model.set_gate(0.0)
    silent = model.generate(**batch, audio=audio, **options)
    assert torch.equal(silent.sequences, expected.sequences)
    assert all(torch.equal(*pair) for pair in zip(silent.logits, expected.logits, strict=True))
    assert (heard.logits[0] - expected.logits[0]).abs().max() > 0.1


def test_picture_and_sound_both_count(folder: Path, model_of: Maker) -> None:
    """Each changes what follows, and padding on the left does not."""
    batch, audio = inputs(folder), torch.randn(2, AUDIO_DIM)
    model = model_of(load_backbone(str(folder), dtype="float32"))
    with torch.no_grad():
        both = model(**batch, audio=audio).logits[:, -1]
        other = {**batch, "pixel_values": -batch["pixel_values"]}
        assert (model(**other, audio=audio).logits[:, -1] - both).abs().max() > 1e-3
        assert (model(**batch, audio=-audio).logits[:, -1] - both).abs().max() > 1e-3
        for row in (0, 1):  # one of the two is padded
            part = slice(row, row + 1)
            alone = model(**inputs(folder, rows=part), audio=audio[part]).logits[:, -1]
            # worst case measured 3.6e-6, of logits up to 4
            assert (alone - both[part]).abs().max() < 1e-4


def test_position_0_is_behind_the_padding_with_pictures_too(folder: Path, model_of: Maker) -> None:
    """A padded prompt says what it says alone, and generating begins as a forward pass ends."""
    batch, audio = inputs(folder), torch.randn(2, AUDIO_DIM)
    backbone = load_backbone(str(folder), dtype="float32")
    model = model_of(backbone, fusion={"skip_first_token": True})
    if folder.name == "qwen2_vl":
        with pytest.raises(ModelError, match="does not tell its layers the positions"):
            model(**batch, audio=audio)
        return
    with torch.no_grad():
        heard, silent = model(**batch, audio=audio).logits, model(**batch).logits
        everywhere = model_of(backbone)(**batch, audio=audio).logits
        alone = [
            model(**inputs(folder, rows=slice(row, row + 1)), audio=audio[row : row + 1])
            for row in (0, 1)
        ]
    options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True}
    first = model.generate(**batch, audio=audio, output_logits=True, **options).logits[0]
    # worst case measured 4e-6, of logits up to 4
    last = torch.cat([one.logits[:, -1] for one in alone])
    torch.testing.assert_close(last, heard[:, -1], rtol=0, atol=1e-4)
    torch.testing.assert_close(first, heard[:, -1], rtol=0, atol=1e-4)
    for row, place in enumerate(batch["attention_mask"].long().argmax(1)):
        assert torch.equal(heard[row, place], silent[row, place])
        assert (everywhere[row, place] - silent[row, place]).abs().max() > 0.1


def test_prompt_by_family(folder: Path) -> None:
    """LLaVA-1.5's own words; others from their chat template, which wants a list of parts."""
    backbone = load_backbone(str(folder), dtype="float32")
    own = LLAVA_15 if folder.name == "llava" else f"[INST] {REQUEST} [/INST]"
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
