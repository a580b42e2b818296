"""A backbone whose weights lie elsewhere between calls, as device_map="auto" can leave it."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import SequentialHook
from torch import nn

from probes.diagnosis import diagnose
from safe.models import backbones
from safe.models.backbones import load_backbone
from safe.models.placement import execution_device
from safe.models.safe_model import SAFEModel
from tests.models.families import CAUSAL, IMAGE_TEXT, LAYERS, save

FAMILIES = (*CAUSAL, *IMAGE_TEXT)


def offload(module: nn.Module) -> None:
    """As accelerate does for what does not fit: weights on meta, a hook that brings them."""
    cpu_offload(module, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("base", ["shared", "random"])
def test_offloaded_layers_give_the_same_values_and_gradients(
    make_model, make_backbone, text_batch, audio_batch, base
):
    (ids, mask), audio = text_batch(), audio_batch(3)
    labels = ids.masked_fill(mask == 0, -100)
    plain = make_model(fusion={"base": base})
    backbone = make_backbone()
    for layer in backbone.layers[2:]:
        offload(layer)
    offload(backbone.model.get_input_embeddings())
    model = SAFEModel(backbone, plain.config)
    assert all(p.is_meta for p in backbone.layers[3].parameters())
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.is_meta]
    assert model.device == torch.device("cpu")
    with torch.no_grad():
        expected = make_backbone().model(ids, attention_mask=mask).logits
        assert torch.equal(model(ids, mask).logits, expected)
        own = dict(model.named_parameters())
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad or (base == "random" and "base_layer" in name):
                own[name].copy_(parameter)
    losses = [m(ids, mask, audio, labels).loss for m in (plain, model)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, own[name].grad), name


def test_a_new_lora_on_an_offloaded_layer_starts_at_zero(make_backbone, make_config):
    backbone = make_backbone()
    offload(backbone.layers[3])
    for block in SAFEModel(backbone, make_config()).fusion.blocks().values():
        for lora in (block.q_proj, block.k_proj, block.v_proj, block.o_proj):
            assert not lora.lora_B["default"].weight.any()
            assert 0.01 < lora.lora_A["default"].weight.std() < 1


@pytest.mark.parametrize("everything", [False, True], ids=["two layers", "everything"])
@pytest.mark.parametrize("family", ["llama", "llava on llama"])
def test_weights_on_disk(tokenizer, make_config, tmp_path, monkeypatch, family, everything):
    """As device_map="auto" leaves what neither GPU nor memory can hold, read at every use."""
    folder = save(next(f for f in FAMILIES if f.name == family), tmp_path, copy.deepcopy(tokenizer))
    plain = load_backbone(str(folder), dtype="float32")
    prefix = "model." if family == "llama" else "model.language_model."
    layers = {f"{prefix}layers.{i}": "disk" if i in (1, 3) else "cpu" for i in range(LAYERS)}
    others = [f"{prefix}{part}" for part in ("embed_tokens", "rotary_emb", "norm")]
    others += ["lm_head"] if family == "llama" else ["lm_head", "model.vision_tower"]
    others += [] if family == "llama" else ["model.multi_modal_projector"]
    parts = dict.fromkeys(others, "cpu") | layers
    if everything:
        parts = dict.fromkeys(parts, "disk")
    given = backbones._load_options("float32", None, None)
    monkeypatch.setattr(backbones, "_load_options", lambda *_: given | {"device_map": parts})
    found = load_backbone(str(folder), dtype="float32")
    assert all(p.is_meta for p in found.layers[3].parameters())
    config = make_config(num_layers=LAYERS)
    models = [SAFEModel(backbone, config) for backbone in (plain, found)]
    ids, audio = torch.randint(5, 200, (2, 7)), torch.randn(2, config.audio_dim)
    for one, other in zip(*map(trainables, models), strict=True):  # the same adapter, all awake
        one.data = other.data = 0.3 * torch.randn_like(one)
    losses = [model(ids, None, audio, ids).loss for model in models]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for one, other in zip(*map(trainables, models), strict=True):
        assert torch.equal(one.grad, other.grad)
    said = [model.generate(ids, torch.ones_like(ids), audio, max_new_tokens=3) for model in models]
    assert torch.equal(*said)


def trainables(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_probes_measure_an_offloaded_backbone_as_any_other(make_model, make_backbone, audio_batch):
    plain, backbone = make_model(), make_backbone()
    offload(backbone.model)
    model = SAFEModel(backbone, plain.config)
    for one, other in zip(trainables(model), trainables(plain), strict=True):
        one.data.copy_(other)
    ids = torch.randint(5, 200, (3, 7))
    labels = ids.clone()
    labels[:, :3] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    found = [diagnose(m, [batch | {"audio": audio_batch(3)}]) for m in (plain, model)]
    assert not found[0].not_measured and not found[1].not_measured
    assert list(found[0].log) == list(found[1].log)


def test_where_a_module_computes():
    linear = nn.Linear(2, 2)
    assert execution_device(linear) == torch.device("cpu")
    with torch.device("meta"):
        assert execution_device(nn.Linear(2, 2)) == torch.device("meta")
    offload(linear)
    assert linear.weight.is_meta
    assert execution_device(linear) == torch.device("cpu")
    hook = linear._hf_hook
    hook.execution_device = 1  # as accelerate numbers GPUs
    linear._hf_hook = SequentialHook(hook)
    assert execution_device(linear) == torch.device("cuda", 1)
