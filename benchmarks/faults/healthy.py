"""Healthy set-ups: configurations, seeds, fresh and trained, backbones, precisions, wrappers."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.faults.bench import CAUSAL, LONG, Bench, build

CONFIGS = ("demo", "full", "phase1", "phase2")
TRAINED = 3


def healthy() -> dict[str, Callable[[], Bench]]:
    """Name to builder of each healthy set-up."""
    return dict((*_grid(), *_ways_to_train()))


def _grid() -> Iterator[tuple[str, Callable[[], Bench]]]:
    causal = list(CAUSAL)
    for i, config in enumerate(CONFIGS):
        for backbone in ("embedded", causal[i % len(causal)]):
            for dtype in ("float32", "bfloat16"):
                for seed, steps in ((0, 0), (1, 0), (2, TRAINED)):
                    name = f"{config}/{backbone}/{dtype}/seed{seed}/step{steps}"
                    yield name, partial(build, config, seed, backbone, dtype, steps)
    for seed in (0, 1):
        name = f"phase1/embedded/float32/seed{seed}/step{LONG}"
        yield name, partial(build, "phase1", seed=seed, steps=LONG)


def _ways_to_train() -> Iterator[tuple[str, Callable[[], Bench]]]:
    """What people turn on to train faster, in less memory, or with others' tools."""
    for steps in (0, TRAINED):
        make = partial(build, "demo", steps=steps)
        ways = {
            "autocast-float16": partial(_autocast, make, torch.float16),
            "autocast-bfloat16": partial(_autocast, make, torch.bfloat16),
            "gradient-checkpointing": partial(make, model__gradient_checkpointing=True),
            "accumulation4": partial(make, accumulation=4),
            "peft-wrapped": partial(_peft, make),
            "left-padded": partial(_left_padded, make),
        }
        for name, made in ways.items():
            yield f"demo/{name}/step{steps}", made


def _autocast(make: Callable[[], Bench], dtype: torch.dtype) -> Bench:
    """Mixed precision; float16 with a GradScaler's usual scale."""
    bench = make()
    bench.autocast = dtype
    if dtype == torch.float16:
        bench.loss_scale = 2.0**16
    return bench


def _peft(make: Callable[[], Bench]) -> Bench:
    """PEFT around the whole model, with a LoRA in the decoder that the optimizer holds, too.

    ``get_peft_model`` freezes everything else; what was trainable is thawed again.
    """
    bench = make()
    last = max(bench.model.layers)
    names = [n for n, _ in bench.model.backbone.named_modules()]
    target = next(n for n in names if re.search(rf"layers\.{last}\.self_attn\.v_proj$", n))
    trained = {id(p): p for p in bench.trainer.parameters.values()}
    config = LoraConfig(r=1, target_modules=[f"backbone.{target}"])
    wrapped: Any = get_peft_model(bench.model, config)
    added = [p for p in wrapped.parameters() if p.requires_grad and id(p) not in trained]
    for parameter in trained.values():
        parameter.requires_grad_(True)
    bench.optimizer.add_param_group({"params": added, "lr": 1e-4, "weight_decay": 0.0})
    bench.model = wrapped
    return bench


def _left_padded(make: Callable[[], Bench]) -> Bench:
    """Padding on the left, everywhere, as for generation."""

    def rolled(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        missing = (mask == 0).sum(1).tolist()
        return torch.stack([row.roll(m) for row, m in zip(tensor, missing, strict=True)])

    bench = make()
    bench.change_batches(
        input_ids=lambda b: rolled(b.input_ids, b.attention_mask),
        labels=lambda b: rolled(b.labels, b.attention_mask),
        attention_mask=lambda b: rolled(b.attention_mask, b.attention_mask),
    )
    return bench
