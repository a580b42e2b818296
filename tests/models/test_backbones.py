"""Backbones: loading by every kind of name, freezing, parity with the bare language model."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from configs.errors import ModelError
from safe.fetch import is_fetched
from safe.models import backbones, prompts
from safe.models.backbones import (
    Backbone,
    backbone_from_causal_lm,
    hidden_of,
    load_backbone,
    meta_backbone,
    replace_hidden,
    weights_available,
)
from safe.models.causal_lm import unused_token
from safe.models.digest import file_digest
from safe.models.hub import EMBEDDED
from safe.models.meta import planned_backbone

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "dog", "barks", "Describe", "the", "sound", ":"]
SIZES = {
    "vocab_size": 16,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
}


def tiny_tokenizer(*, pad: bool = True) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, **marks, **({"pad_token": "<pad>"} if pad else {})
    )


def tiny_lm(family: str = "llama", *, tied: bool = True, seed: int = 1) -> PreTrainedModel:
    torch.manual_seed(seed)
    model_class, config_class = FAMILIES[family]
    return model_class(config_class(**SIZES, tie_word_embeddings=tied)).eval()


def tiny_llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(2)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=8,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**SIZES), image_token_index=15
    )
    return LlavaForConditionalGeneration(config)


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_llava(), tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_lm(), tmp_path_factory.mktemp("models") / "lm")


@pytest.fixture
def _empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def unreachable(name: str, **_: object) -> str:
        raise OSError("name or service not known\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)


def assert_sound(backbone: Backbone) -> None:
    backbone.assert_frozen()
    assert not any(module.training for module in backbone.model.modules())
    assert not any(param.requires_grad for param in backbone.model.parameters())
    assert backbone.tokenizer.pad_token_id is not None
    assert (backbone.hidden_size, backbone.num_layers, len(backbone.layers)) == (24, 3, 3)
    heads = (backbone.num_attention_heads, backbone.num_key_value_heads, backbone.head_dim)
    assert heads == (4, 2, 6)


def test_llava_folder(llava_folder: Path) -> None:
    backbone = load_backbone(str(llava_folder), dtype="float32")
    assert_sound(backbone)
    assert backbone.prompt == prompts.LLAVA_15
    assert backbone.layers[1] is backbone.model.model.language_model.layers[1]
    for name, value in tiny_llava().state_dict().items():
        torch.testing.assert_close(backbone.model.state_dict()[name], value, rtol=0, atol=0)


def test_causal_lm_folder_in_bfloat16(lm_folder: Path) -> None:
    backbone = load_backbone(str(lm_folder))
    assert_sound(backbone)
    assert isinstance(backbone.model, LlavaForConditionalGeneration)
    assert {param.dtype for param in backbone.model.parameters()} == {torch.bfloat16}
    assert backbone.prompt == prompts.GENERIC


def test_identity_follows_the_weights_not_the_place(lm_folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(lm_folder, tmp_path / "lm")
    other = save(tiny_lm(seed=3), tmp_path / "other" / "lm")
    names = [load_backbone(str(folder)).identity for folder in (lm_folder, moved, other)]
    assert names[0] == names[1] != names[2]


def test_prompt_file_wins(lm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lm_folder, tmp_path / "lm")
    (folder / "safe_prompt.json").write_text('{"prompt": "Sound: "}')
    assert load_backbone(str(folder)).prompt == "Sound: "
    (folder / "safe_prompt.json").write_text("[]")
    with pytest.raises(ModelError, match=r"safe_prompt.json: expected"):
        load_backbone(str(folder))
    (folder / "safe_prompt.json").write_text('{"prompt": 3}')
    with pytest.raises(ModelError, match="must be text, not int"):
        load_backbone(str(folder))


def test_chat_template_gives_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}>"
    assert prompts.family_prompt("llama", "llama", tokenizer) == f"<s>{prompts.REQUEST}>"
    parts = "{{ messages[0]['content'][0]['text'] }}!"
    tokenizer.chat_template = parts
    assert prompts.family_prompt("qwen2_vl", "qwen2", tokenizer) == f"{prompts.REQUEST}!"
    for unusable in ("always the same", "{{ raise_exception('no') }}", None):
        tokenizer.chat_template = unusable
        assert prompts.family_prompt("llama", "llama", tokenizer) == prompts.GENERIC


def test_chat_template_without_a_second_bos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}>"
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert prompts.family_prompt("llama", "llama", tokenizer) == f"{prompts.REQUEST}>"


def test_chat_template_of_an_older_processor(lm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lm_folder, tmp_path / "lm")
    template = {"chat_template": "[INST] {{ messages[0]['content'] }} [/INST]"}
    (folder / "chat_template.json").write_text(json.dumps(template))
    prompt = load_backbone(str(folder)).prompt
    assert prompt == f"[INST] {prompts.REQUEST} [/INST]"
    assert planned_backbone(str(folder), "float32").prompt == prompt
    (folder / "chat_template.json").write_text("{}")
    with pytest.raises(ModelError, match="not a backbone that can be loaded"):
        load_backbone(str(folder))


def test_no_template_gives_plain_words() -> None:
    tokenizer = tiny_tokenizer()
    assert prompts.family_prompt("llama", "llama", tokenizer) == prompts.GENERIC


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_lm_in_llava_is_bitwise_the_lm(family: str, tied: bool, dtype: torch.dtype) -> None:
    lm = tiny_lm(family, tied=tied).to(dtype)
    ids = torch.randint(3, 11, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # left padding
    with torch.no_grad():
        alone = [lm(input_ids=ids).logits, lm(input_ids=ids, attention_mask=mask).logits]
    greedy = {"max_new_tokens": 6, "do_sample": False}
    text = lm.generate(input_ids=ids, attention_mask=mask, **greedy)
    model = backbone_from_causal_lm(lm, tiny_tokenizer(), "tiny").model
    with torch.no_grad():
        inside = [model(input_ids=ids).logits, model(input_ids=ids, attention_mask=mask).logits]
    for expected, found in zip(alone, inside, strict=True):
        assert torch.equal(expected, found)
    assert torch.equal(text, model.generate(input_ids=ids, attention_mask=mask, **greedy))


def test_causal_lm_shares_its_weights() -> None:
    lm = tiny_lm()
    backbone = backbone_from_causal_lm(lm, tiny_tokenizer(), "tiny", prompt="", identity="me")
    model = backbone.model
    assert model.get_decoder() is lm.model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert (backbone.prompt, backbone.identity) == ("", "me")
    again = backbone_from_causal_lm(tiny_lm(), tiny_tokenizer(), "tiny").model
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # the vision tower's seed is fixed


def test_saved_llava_of_a_causal_lm_loads_again(tmp_path: Path) -> None:
    model = backbone_from_causal_lm(tiny_lm(), tiny_tokenizer(), "tiny").model
    ids = torch.tensor([[4, 5, 6]])
    backbone = load_backbone(str(save(model, tmp_path / "llava")), dtype="float32")
    with torch.no_grad():
        assert torch.equal(backbone.model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_image_token_is_never_ordinary_text() -> None:
    tokenizer = tiny_tokenizer()
    assert unused_token(tokenizer, 16) == 15
    assert unused_token(tokenizer, len(WORDS)) == len(WORDS) - 1
    tokenizer.add_special_tokens({"additional_special_tokens": ["<role>", "<free>"]})
    assert tokenizer.decode(unused_token(tokenizer, len(tokenizer))) == "<free>"
    tokenizer.chat_template = "<free>{{ messages }}"
    assert tokenizer.decode(unused_token(tokenizer, len(tokenizer))) == "<role>"


def test_pad_token_is_ensured() -> None:
    backbone = backbone_from_causal_lm(tiny_lm(), tiny_tokenizer(pad=False), "tiny")
    assert backbone.tokenizer.pad_token == "</s>"
    assert backbone.model.generation_config.pad_token_id == 2


def test_thawed_backbone_is_refused() -> None:
    backbone = backbone_from_causal_lm(tiny_lm(), tiny_tokenizer(), "tiny")
    backbone.model.model.language_model.norm.weight.requires_grad_(True)
    with pytest.raises(ModelError, match=r"tiny: 1 parameters are not frozen \(.*norm.weight"):
        backbone.assert_frozen()


@pytest.mark.parametrize(
    ("size", "total", "hidden", "layers"),
    [("7b", 7_063_427_072, 4096, 32), ("13b", 13_351_494_656, 5120, 40)],
)
def test_llava_15_parameter_counts(size: str, total: int, hidden: int, layers: int) -> None:
    backbone = meta_backbone(f"llava-hf/llava-1.5-{size}-hf")
    assert (backbone.hidden_size, backbone.num_layers) == (hidden, layers)
    assert sum(p.numel() for p in backbone.model.parameters()) == total
    assert all(p.is_meta for p in backbone.model.parameters())
    if size == "13b":
        inner = backbone.model.model
        parts = (inner.language_model, inner.vision_tower, inner.multi_modal_projector)
        counts = [sum(p.numel() for p in part.parameters()) for part in parts]
        assert counts == [12_852_352_000, 303_507_456, 31_467_520]
        assert backbone.model.lm_head.weight.numel() == 164_167_680


def test_meta_backbone_of_unknown_name() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'llava-hf/llava-1.5-13b-hf'"):
        meta_backbone("llava-hf/llava-1.5-13b")


def test_layer_outputs_of_every_kind() -> None:
    old, new = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    assert hidden_of(old) is old
    assert hidden_of((old, "cache")) is old
    assert replace_hidden(old, new) is new
    assert replace_hidden((old, "cache"), new) == (new, "cache")
    assert replace_hidden([old], new) == [new]
    for wrong in (None, (), ("cache", old)):
        with pytest.raises(TypeError, match="not hidden states"):
            hidden_of(wrong)


@pytest.mark.usefixtures("_empty_hub")
def test_hub_name_that_cannot_be_had() -> None:
    name = "llava-hf/llava-1.5-13b-hf"
    assert not weights_available(name)
    with pytest.raises(ModelError) as caught:
        load_backbone(name)
    message = str(caught.value)
    for part in (
        name,
        "on this machine nor on the hub",
        "(name or service not known)",
        f"hf download {name}",
        "--backbone FOLDER",
        "--backbone smollm2",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.usefixtures("_empty_hub")
def test_hub_name_from_the_cache(lm_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc"
    shutil.copytree(lm_folder, snapshot)
    assert weights_available("someone/tiny")
    assert_sound(load_backbone("someone/tiny"))
    weights = snapshot / "model.safetensors"
    weights.rename(snapshot / "model-00001-of-00002.safetensors")
    assert not weights_available("someone/tiny")  # half a download


def test_pickled_weights_are_not_opened(
    lm_folder: Path, with_pickle: Callable[[Path], Path]
) -> None:
    folder = with_pickle(lm_folder)
    assert_sound(load_backbone(str(folder)))
    (folder / "model.safetensors").unlink()
    match = r"are a pickle \(.*pytorch_model.bin\).* not opened; .*safetensors.*save_pretrained"
    with pytest.raises(ModelError, match=match):
        load_backbone(str(folder))
    assert not weights_available(str(folder))
    save_file({"odd": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="not a backbone that can be loaded"):
        load_backbone(str(folder))


def test_folders_that_are_no_backbone(lm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such model folder \(it needs a config.json\)"):
        load_backbone(str(tmp_path / "nowhere"))
    empty = shutil.copytree(lm_folder, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    assert not weights_available(str(empty))
    with pytest.raises(ModelError, match=r"no \*.safetensors in"):
        load_backbone(str(empty))
    bert = BertConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    with pytest.raises(ModelError, match="LLaVA-type model or a causal language model"):
        load_backbone(str(save(BertModel(bert), tmp_path / "bert")))


def test_missing_weights_are_named(lm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lm_folder, tmp_path / "lm")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 4
    if "layer_types" in config:
        config["layer_types"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"weights are missing in .*layers.3"):
        load_backbone(str(folder))


# ---- weights in several files


@pytest.fixture(scope="module")
def shards(lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "lm"
    tiny_lm().save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder)
    return folder


INDEX = "model.safetensors.index.json"


def test_shards_are_put_together(shards: Path) -> None:
    assert len(list(shards.glob("*.safetensors"))) > 2
    model, whole = load_backbone(str(shards), dtype="float32").model, tiny_lm()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(model.model.language_model.state_dict()[name], value), name
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def to_other_file(weights: dict[str, str]) -> None:
    """The index says of a weight that it lies where it does not, and nothing of its own file."""
    own = weights["model.norm.weight"]
    for name in [name for name, file in weights.items() if file == own]:
        weights[name] = next(file for file in weights.values() if file != own)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
         r"1 of 3 weight files \(model-00002-of-00003.safetensors\) not in .*download it again"),
        (lambda f: (f / INDEX).unlink(), f"3 weight files but no {INDEX} in "),
        (lambda f: (f / INDEX).write_text("{"), f"{INDEX} is no index of weights "),
        (lambda f: (f / INDEX).write_text("[]"), f"{INDEX} is no index of weights "),
        (lambda f: change_index(f, lambda w: w.update(x="../lm/x-00001-of-00003.safetensors")),
         r"1 of 4 weight files \(../lm/x-00001-of-00003.safetensors\) not in "),
        (lambda f: change_index(f, to_other_file), "weights are missing in .*norm.weight"),
        (lambda f: cut(f / "model-00002-of-00003.safetensors"), r"can be loaded \(.*incomplete"),
        (lambda f: (f / "model-00002-of-00003.safetensors").write_bytes(b""), "header too small"),
    ],
)  # fmt: skip
def test_shards_that_are_not_all_there(
    shards: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(shards, tmp_path / "lm")
    damage(folder)
    with pytest.raises(ModelError, match=message):
        load_backbone(str(folder), dtype="float32")


def test_remote_code_is_never_run(lm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lm_folder, tmp_path / "lm")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "strange"
    config["auto_map"] = {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "strange.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ModelError, match="not a backbone that can be loaded"):
        load_backbone(str(folder))


def test_options_are_checked(lm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"dtype = 'float16': must be 'float32' or 'bfloat16'"):
        load_backbone(str(lm_folder), dtype="float16")
    with pytest.raises(ModelError, match=r"quantization = '2bit'"):
        load_backbone(str(lm_folder), quantization="2bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"pip install safe-probe\[quant\]"):
        load_backbone(str(lm_folder), quantization="4bit")


def test_embedded_backbone() -> None:
    if not weights_available("embedded"):
        pytest.skip("the embedded backbone is not built: scripts/build_embedded.py")
    backbone = load_backbone("embedded", dtype="float32")
    backbone.assert_frozen()
    assert isinstance(backbone.model, LlavaForConditionalGeneration)
    prescribed = json.loads((EMBEDDED / "backbone" / "safe_prompt.json").read_text())
    assert backbone.prompt == prescribed["prompt"]
    assert backbone.identity.startswith("embedded@")


def test_smollm2_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_PROBE_CACHE", str(tmp_path))
    assert not weights_available("smollm2")
    with pytest.raises(ModelError, match="safe-train fetch smollm2"):
        load_backbone("smollm2")


@pytest.mark.slow
def test_smollm2_speaks() -> None:
    if not is_fetched("smollm2"):
        pytest.skip("needs SmolLM2: safe-train fetch smollm2")
    backbone = load_backbone("smollm2", dtype="float32")
    backbone.assert_frozen()
    assert (backbone.hidden_size, backbone.num_layers, backbone.head_dim) == (576, 30, 64)
    assert backbone.prompt == prompts.SMOLLM2
    question = backbone.prompt.replace(prompts.REQUEST, "What is the capital of France?")
    inputs = backbone.tokenizer(question, return_tensors="pt")
    ids = backbone.model.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert "Paris" in backbone.tokenizer.decode(ids[0, inputs.input_ids.shape[1] :])


def test_availability_needs_no_torch() -> None:
    code = (
        "import sys; from safe.models.backbones import weights_available;"
        "weights_available('no/such'); weights_available('smollm2'); weights_available('embedded');"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_digest_of_ends(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 10 + b"b" * 10 + b"c" * 10)
    whole, ends = file_digest([path]), file_digest([path], edge_bytes=10)
    path.write_bytes(b"a" * 10 + b"x" * 10 + b"c" * 10)
    assert file_digest([path]) != whole
    assert file_digest([path], edge_bytes=10) == ends
    path.write_bytes(b"a" * 10 + b"x" * 10 + b"d" * 10)
    assert file_digest([path], edge_bytes=10) != ends
    assert file_digest([path], edge_bytes=15) == file_digest([path])


def test_public_names() -> None:
    assert all(hasattr(backbones, name) for name in backbones.__all__)


# ---- who sees


def test_a_llava_with_its_own_tower_and_image_token_sees(tmp_path: Path) -> None:
    model, tokenizer = tiny_llava(), tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path), dtype="float32").sees


def test_others_do_not_see(llava_folder: Path, lm_folder: Path) -> None:
    embedded = str(EMBEDDED / "backbone")  # its tower is random, by whatever name it is loaded
    for name in ("embedded", embedded, str(lm_folder), str(llava_folder)):
        assert not load_backbone(name, dtype="float32").sees, name
    assert not backbone_from_causal_lm(tiny_lm(), tiny_tokenizer(), "lm").sees
