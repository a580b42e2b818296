"""Every family of docs/backbones.md: silent, heard, trained, saved, planned."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
)

from configs.errors import ModelError
from configs.schema import ModelConfig
from safe.models.adapter_files import from_pretrained, save_pretrained
from safe.models.backbones import Backbone, backbone_from_causal_lm, load_backbone
from safe.models.meta import planned_backbone
from safe.models.safe_model import IGNORED, SAFEModel
from tests.models.families import CAUSAL, IMAGE_TEXT, LAYERS, REFUSED, TEXT, Family, save

AUDIO_DIM, FUSED = 12, (1, 3)
FAMILIES = (*CAUSAL, *IMAGE_TEXT)
Place = Callable[[Family], Path]
Maker = Callable[..., SAFEModel]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Place:
    """The folder of a family, saved when it is first asked for."""
    root, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def folder(family: Family) -> Path:
        if family.name not in made:
            made[family.name] = save(family, root / family.name, copy.deepcopy(tokenizer))
        return made[family.name]

    return folder


@pytest.fixture(scope="module")
def load(place: Place) -> Callable[[Family], Backbone]:
    """A backbone of its own for every call, loaded from its folder once."""
    loaded: dict[str, Backbone] = {}

    def backbone(family: Family) -> Backbone:
        if family.name not in loaded:
            loaded[family.name] = load_backbone(str(place(family)), dtype="float32")
        found = loaded[family.name]
        return replace(found, model=copy.deepcopy(found.model))

    return backbone


@pytest.fixture
def make(load: Callable[[Family], Backbone], make_config: Callable[..., ModelConfig]) -> Maker:
    """make(family, excited=True) -> SAFEModel, always of the same values."""

    def model(family: Family, *, excited: bool = True, **changes: Any) -> SAFEModel:
        backbone = load(family)
        config = make_config(
            backbone=backbone.name, hidden_size=backbone.hidden_size, num_layers=LAYERS,
            **({"fusion": {"layers": FUSED}} | changes),
        )  # fmt: skip
        torch.manual_seed(5)
        made = SAFEModel(backbone, config)
        with torch.no_grad():
            for name, parameter in made.fusion.named_parameters():
                if excited and "lora_" in name:
                    parameter.normal_(std=0.3)
        return made

    return model


def bare(folder: Path, family: Family) -> Any:
    """The model as transformers loads it."""
    loader: Any = AutoModelForCausalLM if family in CAUSAL else AutoModelForImageTextToText
    return loader.from_pretrained(folder, dtype=torch.float32).eval()


def texts() -> tuple[Tensor, Tensor]:
    """Two texts of 7 and 5 tokens, padded on the left."""
    ids = torch.randint(10, 260, (2, 7), generator=torch.Generator().manual_seed(6))
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 2, 0
    return ids, mask


def sounds() -> Tensor:
    return torch.randn(2, AUDIO_DIM, generator=torch.Generator().manual_seed(7))


_REORDERED = 1e-5
"""Largest difference of logits of a few units when other tokens stand behind (other kernels).

Measured: at most 1.7e-6."""


def by_name(families: tuple[Family, ...]) -> Any:
    return pytest.mark.parametrize("family", families, ids=lambda family: family.name)


@by_name(FAMILIES)
def test_gate_off_is_the_bare_model_bit_for_bit(place: Place, make: Maker, family: Family) -> None:
    (ids, mask), audio, model = texts(), sounds(), make(family)
    own = bare(place(family), family)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        expected = own(input_ids=ids, attention_mask=mask).logits
        heard, silent = model(ids, mask, audio).logits, model(ids, mask).logits
        said = [
            own.generate(input_ids=ids, attention_mask=mask, pad_token_id=2, num_beams=n, **options)
            for n in (1, 2)
        ]
        model.set_gate(0.0)
        shut = model(ids, mask, audio).logits
        again = [model.generate(ids, mask, audio, num_beams=n, **options) for n in (1, 2)]
    assert torch.equal(silent, expected) and torch.equal(shut, expected)
    assert (heard - expected).abs().max() > 0.05
    assert all(torch.equal(*pair) for pair in zip(said, again, strict=True))


@by_name(FAMILIES)
def test_every_trainable_gets_its_gradient_and_nothing_frozen_does(
    make: Maker, family: Family
) -> None:
    """The same with and without checkpointing; the loss is that of the model's own logits."""
    (ids, mask), audio = texts(), sounds()
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :4] = IGNORED
    found = []
    for checkpointing in (False, True):
        model = make(family, gradient_checkpointing=checkpointing).train()
        loss = model(ids, mask, audio, labels).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
            else:
                assert parameter.grad is None, name
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    # recomputed in the same order: no difference was measured
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())
    log = model(ids, mask, audio).logits[:, 3:-1].log_softmax(-1)
    own = -log.gather(-1, ids[:, 4:, None]).sum()
    torch.testing.assert_close(loss, own)


@by_name(FAMILIES)
def test_no_token_hears_what_is_behind_it(make: Maker, family: Family) -> None:
    """Else a caption's words were seen before they are predicted, and padding were heard."""
    (ids, _), audio, model = texts(), sounds(), make(family)
    other, mask = ids.clone(), torch.ones_like(ids)
    other[:, 5:], mask[:, 5:] = 17, 0
    with torch.no_grad():
        found = [model(tokens, None, audio).logits[:, :5] for tokens in (ids, other)]
        padded = model(other, mask, audio).logits[:, :5]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=_REORDERED)
    torch.testing.assert_close(found[0], padded, rtol=0, atol=_REORDERED)


@by_name(FAMILIES)
def test_generation_is_forward_step_by_step(make: Maker, family: Family) -> None:
    (ids, mask), audio, model = texts(), sounds(), make(family)
    said = model.generate(ids, mask, audio, max_new_tokens=4, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        for _ in range(4):
            token = model(ids, mask, audio).logits[:, -1].argmax(-1, keepdim=True)
            ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    assert torch.equal(said, ids)


@by_name(FAMILIES)
def test_the_branch_is_the_layers_own_attention_without_positions(
    make: Maker, family: Family
) -> None:
    """A fresh LoRA adds nothing, so that norms, scaling, cap and groups must be the layer's."""
    model = make(family, excited=False)
    block, layer = model.fusion.blocks()[1], model.layers[1]
    attention: Any = layer.self_attn
    hidden = 3 * torch.randn(2, 7, model.config.hidden_size)
    heads = (2, 7, block.head_dim)
    attention.config._attn_implementation = "eager"
    with torch.no_grad():
        block.residual.residual_scale.fill_(1.0)
        inside = block.query_norm(hidden)
        own = attention(
            hidden_states=inside, attention_mask=torch.zeros(2, 1, 7, 7),
            position_embeddings=(torch.ones(heads), torch.zeros(heads)),
        )[0]  # fmt: skip
        added = block(hidden, *block.keys_values(inside), None, 1.0) - hidden
    # measured below 2e-6, of values up to 10
    torch.testing.assert_close(added, own, rtol=1e-4, atol=1e-4)
    assert own.abs().max() > 0.1
    # a norm may stand behind the keys, but none behind the values: the projector's scale gets there
    none, value, louder = (block.keys_values(factor * inside)[1] for factor in (0, 1, 5))
    torch.testing.assert_close(louder - none, 5 * (value - none), rtol=1e-4, atol=1e-4)


@by_name(FAMILIES)
def test_position_0_is_left_alone_on_request(make: Maker, family: Family) -> None:
    """What is said after the first token is then what a deaf model says; or an error says why."""
    (ids, mask), audio = texts(), sounds()
    model = make(family, fusion={"layers": FUSED, "skip_first_token": True})
    if family.name in ("qwen2_vl", "qwen2_5_vl"):
        with pytest.raises(ModelError, match="this decoder does not tell its layers the positions"):
            model(ids, mask, audio)
        return
    with torch.no_grad():
        heard, silent = model(ids, mask, audio).logits, model(ids, mask).logits
    for row, first in enumerate((0, 2)):
        assert torch.equal(heard[row, first], silent[row, first])
    assert (heard[:, -1] - silent[:, -1]).abs().max() > 1e-3


@by_name(FAMILIES)
def test_adapter_comes_back(make: Maker, family: Family, tmp_path: Path) -> None:
    (ids, mask), audio, model = texts(), sounds(), make(family)
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids, mask, audio).logits, model(ids, mask, audio).logits)


@by_name(FAMILIES)
def test_planned_without_weights(
    place: Place, load: Callable[[Family], Backbone], tmp_path: Path, family: Family
) -> None:
    real = load(family)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (place(family) / name).exists():
            (tmp_path / name).write_bytes((place(family) / name).read_bytes())
    planned = planned_backbone(str(tmp_path), "float32")
    sizes = {n: (p.shape, p.dtype) for n, p in real.model.named_parameters()}
    assert {n: (p.shape, p.dtype) for n, p in planned.model.named_parameters()} == sizes
    assert planned.prompt == real.prompt


def fuse(folder: Path, config: ModelConfig) -> SAFEModel:
    backbone = load_backbone(str(folder), dtype="float32")
    sizes = {"hidden_size": backbone.hidden_size, "num_layers": backbone.num_layers}
    return SAFEModel(backbone, replace(config, **sizes))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("phi3", "Phi3DecoderLayer has no self_attn.q_proj, self_attn.k_proj, self_attn.v_proj;"),
        ("phi", "PhiDecoderLayer has no self_attn.o_proj;"),
        ("gpt_neox", "GPTNeoXLayer has no self_attn.q_proj, "),
        (
            "stablelm",
            "has self_attn.k_layernorm, self_attn.q_layernorm, which fusion does not know",
        ),
        ("gpt_oss", "GptOssDecoderLayer has self_attn.sinks, which fusion does not know"),
        ("qwen3_next", "Qwen3NextDecoderLayer has no self_attn.q_proj"),
        ("paligemma", "GemmaDecoderLayer attends to later tokens, too"),
        ("paligemma on gemma2", "Gemma2DecoderLayer attends to later tokens, too"),
        ("gpt2", "not a backbone that can be loaded (its config.json says architecture GPT2LMHead"),
        ("t5", "not a backbone that can be loaded (Unrecognized configuration class"),
    ],
)
def test_refused_by_name_with_the_reason(
    place: Place, make_config: Callable[..., ModelConfig], name: str, why: str
) -> None:
    folder = place(next(family for family in REFUSED if family.name == name))
    with pytest.raises(ModelError, match=re.escape(why)):
        fuse(folder, make_config(fusion={"layers": FUSED}))


def test_logits_that_are_changed_in_an_unknown_way(tokenizer: Any) -> None:
    class Strange(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            return replace(found, logits=found.logits - 1)

    with pytest.raises(ModelError, match="Strange does something to its logits behind the output"):
        backbone_from_causal_lm(Strange(LlamaConfig(**TEXT)), tokenizer, "strange")


def test_logits_that_need_more_than_hidden_states(tokenizer: Any) -> None:
    class Strange(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = self.model(*args, **kwargs)
            return self.lm_head(found.last_hidden_state + found.more)

    with pytest.raises(ModelError, match="Strange cannot be put into LLaVA's class .*'more'"):
        backbone_from_causal_lm(Strange(LlamaConfig(**TEXT)), tokenizer, "strange")


def test_the_page_lists_these_families_with_their_prompts(
    load: Callable[[Family], Backbone], repo_root: Path
) -> None:
    page = (repo_root / "docs" / "backbones.md").read_text(encoding="utf-8")
    lines = page.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    forms = {line[:11].strip(): line[11:].replace("\\n", "\n") for line in lines}
    listed = {row[0]: forms[row[3]] for row in rows if len(row) == 4 and row[3] in forms}
    found = {family.name: load(family).prompt.rstrip(" ") for family in FAMILIES}
    assert {name: listed.get(name) for name in found} == found
    refused = {name for row in rows if len(row) == 2 for name in row[0].split(", ")}
    assert {family.name for family in REFUSED} <= refused
