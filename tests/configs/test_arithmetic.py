"""Closed-form parameter counts against the known figures and against real modules."""

import pytest
import torch
from torch import nn

from configs.arithmetic import count_parameters, lora_parameters, projector_parameters
from configs.model_configs import CONFIGS


@pytest.mark.parametrize(
    ("bottleneck", "tokens", "expected"),
    [
        (1024, 16, 84_493_312),
        (1024, 32, 168_461_312),
        (4096, 32, 673_353_728),
        (None, 32, 84_049_920),
    ],
)
def test_projector_at_hidden_size_5120(bottleneck: int | None, tokens: int, expected: int) -> None:
    assert projector_parameters(512, bottleneck, tokens, 5120) == expected
    with torch.device("meta"):
        width = tokens * 5120
        layers = (
            [nn.Linear(512, width)]
            if bottleneck is None
            else [nn.Linear(512, bottleneck), nn.Linear(bottleneck, width)]
        )
    assert sum(p.numel() for layer in layers for p in layer.parameters()) == expected


def test_lora_at_hidden_size_5120() -> None:
    assert lora_parameters(64, 5120, 5120, 4) == 10_485_760
    assert lora_parameters(8, 5120, 5120, 3) == 983_040


def test_lora_with_grouped_queries_counts_the_narrow_keys() -> None:
    hidden, kv, rank = 576, 192, 7  # SmolLM2-135M: 9 heads of 64, 3 of them for keys
    shapes = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)]
    by_hand = sum(rank * inputs + outputs * rank for inputs, outputs in shapes)
    assert lora_parameters(rank, hidden, kv, 4) == 4 * by_hand


def test_total_of_phase1() -> None:
    counts = count_parameters(CONFIGS["phase1"].model)
    assert (counts.norm, counts.gates) == (1024, 4)
    assert counts.total == 168_461_312 + 10_485_760 + 1024 + 4


def test_narrow_keys_reach_the_total() -> None:
    model = CONFIGS["demo"].model
    wide, narrow = count_parameters(model), count_parameters(model, kv_width=64)
    assert wide.lora - narrow.lora == len(model.fusion.layers) * 2 * 8 * (192 - 64)
