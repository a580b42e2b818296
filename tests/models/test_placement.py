"""A backbone whose weights lie elsewhere between calls, as device_map="auto" can leave it."""

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import SequentialHook
from torch import nn

from safe.models.placement import execution_device


def offload(module: nn.Module) -> None:
    """As accelerate does for what does not fit: weights on meta, a hook that brings them."""
    cpu_offload(module, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("base", ["shared", "random"])
def test_offloaded_layers_give_the_same_values_and_gradients(
    make_model, make_backbone, text_batch, audio_batch, base
):
    from safe.models.safe_model import SAFEModel

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
    from safe.models.safe_model import SAFEModel

    backbone = make_backbone()
    offload(backbone.layers[3])
    for block in SAFEModel(backbone, make_config()).fusion.blocks().values():
        for lora in (block.q_proj, block.k_proj, block.v_proj, block.o_proj):
            assert not lora.lora_B["default"].weight.any()
            assert 0.01 < lora.lora_A["default"].weight.std() < 1


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
