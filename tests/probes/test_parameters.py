"""Parameter counts against plain counting; nothing twice, nothing left out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from probes import parameters
from probes.components import COMPONENTS, owned_parameters
from probes.context import Context
from probes.record import RecordLog
from probes.signal_path import SignalPath


def _measure(model: nn.Module, **options: Any) -> RecordLog:
    return RecordLog(parameters.measure(Context.of(model, **options)))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_foreign_model(toy: Any, toy_path: SignalPath) -> None:
    log = _measure(toy, path=toy_path)
    expected = {
        "text_embeddings": _count(toy.lm.embed),
        "decoder": _count(toy.lm.blocks),
        "lm_head": _count(toy.lm.head),
        "projector": _count(toy.adapter.projector),
        "fusion": _count(toy.adapter.cross),
        "gate": 2,
        "model": _count(toy),
    }
    for component, total in expected.items():
        assert log.value(component=component, statistic="total") == total
        frozen = total if component in ("text_embeddings", "decoder", "lm_head") else 0
        if component != "model":
            assert log.value(component=component, statistic="frozen") == frozen
            assert log.value(component=component, statistic="trainable") == total - frozen
            assert log.value(component=component, statistic="bytes") == 4 * total
            assert log.value(component=component, statistic="shared") == 0
    assert log.value(statistic="in_optimizer") is None


def test_safe_type_shares_its_base_with_the_decoder(make_safe: Callable[..., Any]) -> None:
    model = make_safe()
    log = _measure(model)
    own = [p for n, p in model.fusion.named_parameters() if "lora_" in n]
    assert log.value(component="fusion", statistic="total") == sum(p.numel() for p in own)
    assert log.value(component="fusion", statistic="frozen") == 0
    shared = log.value(component="fusion", statistic="shared")
    assert shared == sum(p.numel() for p in model.fusion.parameters()) - 2 - sum(
        p.numel() for p in own
    )
    language = model.backbone.model.language_model
    assert log.value(component="decoder", statistic="total") == _count(language) - _count(
        language.embed_tokens
    )
    assert log.value(component="model", statistic="total") == _count(model)
    parts = sum(log.value(component=c, statistic="total") or 0 for c in COMPONENTS)
    assert parts == _count(model)


def test_every_parameter_has_one_owner(make_safe: Callable[..., Any]) -> None:
    model = make_safe()
    owned = owned_parameters(Context.of(model).path)
    assert {id(o.parameter) for o in owned} == {id(p) for p in model.parameters()}
    assert len(owned) == len(list(model.parameters()))
    by_name = {o.name: o for o in owned}
    query = by_name["backbone.model.language_model.layers.1.self_attn.q_proj.weight"]
    assert (query.component, query.layer, query.also_in) == ("decoder", 1, {"fusion"})
    norm = by_name["backbone.model.language_model.norm.weight"]
    assert (norm.component, norm.layer) == ("decoder", None)
    gate = by_name["fusion.2.residual.residual_scale"]
    assert (gate.component, gate.layer) == ("gate", 2)
    assert by_name["backbone.model.vision_tower.embeddings.class_embedding"].component == "other"


def test_tied_embeddings_are_counted_once(toy: Any, toy_path: SignalPath) -> None:
    toy.lm.head.weight = toy.lm.embed.weight
    log = _measure(toy, path=toy_path)
    size = toy.lm.embed.weight.numel()
    assert log.value(component="text_embeddings", statistic="total") == size
    assert log.value(component="lm_head", statistic="total") == 0
    assert log.value(component="lm_head", statistic="shared") == size
    assert log.value(component="model", statistic="total") == _count(toy)


def test_optimizer(toy: Any, toy_path: SignalPath) -> None:
    projector, linear = toy.adapter.projector.linear, toy.adapter.cross["1"].out
    toy.lm.head.requires_grad_(True)
    linear.bias.requires_grad_(False)
    stranger = nn.Parameter(torch.zeros(5))
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = torch.optim.SGD(
            [
                {"params": [projector.weight, projector.weight], "lr": 0.1},
                {"params": [linear.weight, linear.bias, stranger], "lr": 0.2},
                {"params": [projector.bias], "lr": 0.3},
            ],
            lr=1.0,
        )
    log = _measure(toy, path=toy_path, optimizer=optimizer)

    def value(component: str, statistic: str) -> float | None:
        return log.value(component=component, statistic=statistic)

    assert value("projector", "in_optimizer") == _count(projector)
    assert (value("projector", "lr_min"), value("projector", "lr_max")) == (0.1, 0.3)
    assert value("fusion", "in_optimizer") == _count(linear)
    assert value("fusion", "frozen_in_optimizer") == linear.bias.numel()
    assert value("fusion", "trainable_not_in_optimizer") == _count(linear)  # layer 3's
    assert value("gate", "trainable_not_in_optimizer") == 2
    assert value("gate", "lr_min") is None
    assert value("lm_head", "trainable_not_in_optimizer") == _count(toy.lm.head)
    assert (value("optimizer", "duplicates"), value("optimizer", "strangers")) == (1, 5)


def test_dtypes_and_bytes(toy: Any, toy_path: SignalPath) -> None:
    toy.lm.blocks[0].to(torch.bfloat16)
    log = _measure(toy, path=toy_path)
    block = _count(toy.lm.blocks[0])
    assert log.value(component="decoder", statistic="dtype.bfloat16") == block
    assert log.value(component="decoder", statistic="dtype.float32") == 3 * block
    assert log.value(component="decoder", statistic="bytes") == (2 + 3 * 4) * block


def test_four_bit_weights_count_as_weights(toy: Any, toy_path: SignalPath) -> None:
    class Params4bit(nn.Parameter):
        """Stands for bitsandbytes' class: two weights in each byte of storage."""

    packed = Params4bit(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    toy.lm.blocks[2].mix.weight = packed
    log = _measure(toy, path=toy_path)
    assert log.value(component="decoder", statistic="dtype.uint8") == 64
    assert log.value(component="decoder", statistic="bytes") == 32 + 4 * (3 * 16 * 16 + 4 * 16)


def test_meta_device_counts_the_true_13b() -> None:
    from safe.models.backbones import meta_backbone

    model = meta_backbone("llava-hf/llava-1.5-13b-hf").model
    log = _measure(model, signal="vision")
    expected = {
        "model": 13_351_494_656, "encoder": 303_507_456, "projector": 31_467_520,
        "lm_head": 164_167_680, "text_embeddings": 164_167_680,
        "decoder": 12_852_352_000 - 164_167_680,
    }  # fmt: skip
    for component, total in expected.items():
        assert log.value(component=component, statistic="total") == total
