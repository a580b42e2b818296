"""The fusion against plain formulas, its gate, its sharing of weights, its sizes."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from configs.errors import ModelError
from configs.schema import FusionConfig, ModelConfig, ProjectorConfig
from safe.models.backbones import meta_backbone
from safe.models.fusion_adapter import PROJECTIONS, FusionBlock, FusionStack, GatedResidual
from safe.models.safe_model import SAFEModel

MASK = torch.tensor([[True] * 6, [True] * 2 + [False] * 4, [True] * 5 + [False]])


def reference(block, hidden, tokens, mask, gate, rank_scale):
    """The whole fusion from parameters alone: no PEFT, no modules of ours."""

    def project(name, x):
        lora = getattr(block, name)
        base = torch.einsum("bsi,oi->bso", x, lora.base_layer.weight)
        if lora.base_layer.bias is not None:
            base = base + lora.base_layer.bias
        a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
        return base + rank_scale * torch.einsum("bsi,ri,or->bso", x, a, b)

    norm = block.query_norm
    rms = hidden.pow(2).mean(-1, keepdim=True).add(norm.variance_epsilon).sqrt()
    d = block.head_dim
    q = project("q_proj", hidden / rms * norm.weight).unflatten(-1, (-1, d))
    k = project("k_proj", tokens).unflatten(-1, (-1, d))
    v = project("v_proj", tokens).unflatten(-1, (-1, d))
    group = q.shape[2] // k.shape[2]
    heard = []
    for head in range(q.shape[2]):  # head h reads key/value head h // group
        scores = torch.einsum("btd,bnd->btn", q[:, :, head], k[:, :, head // group])
        scores = scores / math.sqrt(d)
        if mask is not None:
            scores = scores - 1e30 * (~mask)[:, None]
        exp = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = exp / exp.sum(-1, keepdim=True)
        heard.append(torch.einsum("btn,bnd->btd", weights, v[:, :, head // group]))
    branch = project("o_proj", torch.cat(heard, -1))
    scale = block.residual.residual_scale
    # torch.min and max have the clamp's gradient but for the edges, which this test never sits on
    strength = torch.min(torch.max(scale, torch.zeros(())), torch.tensor(block.residual.maximum))
    return hidden + gate * strength * branch


def inputs(tokens=6):
    hidden = (3 * torch.randn(3, 7, 32)).requires_grad_()
    return hidden, torch.randn(3, tokens, 32).requires_grad_()


@pytest.mark.parametrize("kind", ["llava", "causal"])
@pytest.mark.parametrize("base", ["shared", "random"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all tokens", "masked"])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_values_and_gradients_by_einsum(make_model, kind, base, mask, alpha):
    model = make_model(kind, fusion={"base": base, "lora_alpha": alpha})
    block = model.fusion.blocks()[3]
    hidden, tokens = inputs()
    wanted = [hidden, tokens, *(p for p in block.parameters() if p.requires_grad)]
    assert len(wanted) == 2 + 8 + 1
    pull = torch.randn(3, 7, 32)
    found = block(hidden, *block.keys_values(tokens), mask, 0.7)
    expected = reference(block, hidden, tokens, mask, 0.7, (alpha or 4) / 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(
        torch.autograd.grad(found, wanted, pull),
        torch.autograd.grad(expected, wanted, pull),
        strict=True,
    ):
        # float32 rounding, measured below 2e-6 of the largest element
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())
        assert one.abs().max() > 0


def test_unused_tokens_have_no_influence(make_model):
    block = make_model().fusion.blocks()[1]
    hidden, tokens = inputs()
    changed = tokens.detach().clone()
    changed[~MASK] = 1e3
    first, second = (block(hidden, *block.keys_values(t), MASK, 1.0) for t in (tokens, changed))
    assert torch.equal(first, second)


def test_attention_weights_sum_to_one(make_model):
    block = make_model().fusion.blocks()[1]
    seen = []
    handle = block.attention.register_forward_hook(lambda _m, _a, out: seen.append(out))
    hidden, tokens = inputs()
    block(hidden, *block.keys_values(tokens), MASK, 1.0)
    handle.remove()
    assert seen[0].shape == (3, 4, 7, 6)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(3, 4, 7))
    assert not seen[0][1, :, :, 2:].any()


# ---- the gate


@pytest.mark.parametrize(
    ("value", "used", "slope"),
    [(-0.1, 0.0, 0.0), (0.0, 0.0, 1.0), (0.4, 0.4, 1.0), (0.8, 0.8, 1.0), (0.9, 0.8, 0.0)],
)
def test_gate_is_clamped_and_has_a_gradient_inside_only(value, used, slope):
    residual = GatedResidual(value, maximum=0.8)
    hidden, branch = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    out = residual(hidden, branch, 0.5)
    torch.testing.assert_close(out, hidden + 0.5 * used * branch)
    out.sum().backward()
    assert residual.residual_scale.grad.item() == pytest.approx(
        slope * 0.5 * branch.sum().item(), rel=1e-5
    )


def test_nothing_normalises_after_the_gate(make_model):
    block = make_model().fusion.blocks()[1]
    hidden, tokens = inputs()
    added = {}
    for value in (0.05, 0.3):
        with torch.no_grad():
            block.residual.residual_scale.fill_(value)
        added[value] = block(hidden, *block.keys_values(tokens), None, 1.0) - hidden
    torch.testing.assert_close(added[0.3], 6 * added[0.05], rtol=1e-3, atol=1e-4)


def test_audio_scale_reaches_the_values(make_model):
    block = make_model().fusion.blocks()[1]
    tokens = torch.randn(1, 6, 32)
    _, value = block.keys_values(tokens)
    _, louder = block.keys_values(5 * tokens)
    torch.testing.assert_close(louder, 5 * value)


def test_hidden_type_is_kept(make_model):
    block = make_model(dtype=torch.bfloat16).fusion.blocks()[1]
    hidden = torch.randn(2, 7, 32, dtype=torch.bfloat16)
    out = block(hidden, *block.keys_values(torch.randn(2, 6, 32)), None, 1.0)
    assert out.dtype == torch.bfloat16


# ---- what is shared, what is trained


def test_base_projections_are_the_decoders_own(make_model):
    model = make_model()
    for index, block in model.fusion.blocks().items():
        for name in PROJECTIONS:
            own = getattr(model.layers[index].self_attn, name)
            assert isinstance(own, nn.Linear)  # PEFT wrapped ours, not the decoder's
            assert getattr(block, name).base_layer is own
            assert getattr(block, name).base_layer.weight.data_ptr() == own.weight.data_ptr()
        assert block.query_norm is model.layers[index].input_layernorm
    storages = {p.untyped_storage().data_ptr(): p.numel() for p in model.parameters()}
    parts = [model.backbone, model.projector]
    alone = sum(p.numel() for part in parts for p in part.parameters())
    lora = 2 * 4 * 4 * 32 + 2 * 4 * (32 + 16 + 16 + 32)  # two layers; A and B of q, k, v, o
    assert sum(storages.values()) == alone + lora + 2


def test_random_base_is_frozen_and_its_own(make_model):
    model = make_model(fusion={"base": "random"}, excited=False)
    for index, block in model.fusion.blocks().items():
        for name in PROJECTIONS:
            base, own = (
                getattr(block, name).base_layer,
                getattr(model.layers[index].self_attn, name),
            )
            assert base.weight.shape == own.weight.shape
            assert base.weight.dtype == own.weight.dtype
            assert base.weight.data_ptr() != own.weight.data_ptr()
            assert not base.weight.requires_grad
            # output variance equals input variance: std of the weights is width^-1/2
            assert base.weight.std().item() == pytest.approx(32**-0.5, rel=0.15)


def test_trainables_are_float32_on_a_bfloat16_backbone(make_model):
    model = make_model(dtype=torch.bfloat16)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


# ---- sizes at 13B


def sizes(tokens, rank, layers):
    backbone = meta_backbone("llava-hf/llava-1.5-13b-hf")
    config = ModelConfig(
        backbone=backbone.name, hidden_size=5120, num_layers=40, audio_encoder="laion-clap",
        projector=ProjectorConfig(num_tokens=tokens),
        fusion=FusionConfig(layers=layers, lora_rank=rank, gate_init=0.3, gate_max=1.0),
    )  # fmt: skip
    with torch.device("meta"):
        model = SAFEModel(backbone, config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    groups = model.trainable_groups()
    adapter = groups["adapter"]
    lora = sum(p.numel() for n, p in adapter.items() if "lora_" in n)
    gates = sum(p.numel() for n, p in adapter.items() if n.endswith("residual_scale"))
    assert lora + gates == sum(p.numel() for p in adapter.values())
    backbone_size = sum(p.numel() for p in model.backbone.parameters())
    return sum(p.numel() for p in groups["projector"].values()), lora, gates, backbone_size


@pytest.mark.parametrize(
    ("tokens", "rank", "layers", "projector", "lora"),
    [
        (32, 64, (8, 16, 24, 32), 168_461_312, 10_485_760),
        (16, 8, (6, 12, 24), 84_493_312, 983_040),
    ],
    ids=["phase1", "full"],
)
def test_parameter_counts_at_13b(tokens, rank, layers, projector, lora):
    found = sizes(tokens, rank, layers)
    assert found == (projector + 1024, lora, len(layers), 13_351_494_656)


# ---- errors


def test_layer_without_projections():
    odd = nn.Module()
    odd.self_attn = nn.Module()
    odd.self_attn.q_proj = nn.Linear(4, 4)
    config = FusionConfig(layers=(0,), lora_rank=2, gate_init=0.1, gate_max=1.0)
    with pytest.raises(
        ModelError,
        match="Module has no self_attn.k_proj, self_attn.v_proj, self_attn.o_proj, "
        "input_layernorm; fusion supports attention as Llama",
    ):
        FusionBlock(odd, config)
    with pytest.raises(ModelError, match="self_attn.q_proj"):
        FusionBlock(SimpleNamespace(), config)


def test_a_query_projection_that_holds_more_than_queries(make_backbone):
    """As Qwen3-Next's, whose second half is a gate on the output."""
    layer = make_backbone().layers[1]
    layer.self_attn.q_proj = nn.Linear(32, 64)
    config = FusionConfig(layers=(0,), lora_rank=2, gate_init=0.1, gate_max=1.0)
    with pytest.raises(
        ModelError, match="has self_attn.q_proj of another width than o_proj, which"
    ):
        FusionBlock(layer, config)


def test_layer_beyond_the_decoder(make_backbone):
    layers = dict(enumerate(make_backbone().layers))
    config = FusionConfig(layers=(1, 5, 9), lora_rank=2, gate_init=0.1, gate_max=1.0)
    with pytest.raises(ModelError, match=r"\[5, 9\] do not exist: the decoder has layers 0 to 4"):
        FusionStack(layers, config)
