"""The settings of modules: training mode of what draws random numbers, LoRA's scaling."""

from typing import Any

import torch
from torch import nn

from probes.context import Context
from probes.modules import measure
from probes.record import RecordLog
from probes.signal_path import SignalPath


def test_dropout_in_training_is_counted_by_component(toy: nn.Module, toy_path: SignalPath) -> None:
    toy.eval()
    log = RecordLog(measure(Context.of(toy, path=toy_path)))
    assert log.value(component="decoder", statistic="noisy_in_training") == 0
    toy.lm.blocks[1].train()
    toy.lm.blocks[2].drop.p = 0.0
    toy.lm.blocks[2].train()
    log = RecordLog(measure(Context.of(toy, path=toy_path)))
    assert log.value(component="decoder", statistic="noisy_in_training") == 1
    assert toy.lm.blocks[1].training  # as found


def test_lora_scaling_is_alpha_over_r(make_safe: Any) -> None:
    model = make_safe(lora_rank=2, lora_alpha=6.0)
    log = RecordLog(measure(Context.of(model)))
    for statistic in ("lora_scaling_min", "lora_scaling_max"):
        assert log.value(component="fusion", layer=1, statistic=statistic) == 3.0


def test_needs_no_values(toy: nn.Module, toy_path: SignalPath) -> None:
    meta = toy.to(torch.device("meta"))
    assert measure(Context.of(meta, path=toy_path))
