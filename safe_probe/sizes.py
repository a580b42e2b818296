"""How large a configuration's model is, and what memory its training needs, without weights.

Backbones whose architecture is built in (LLaVA-1.5 7B and 13B) are made on torch's meta device:
the counts are those of the real model, and nothing is downloaded or allocated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import SGD, Optimizer

from configs.adapt import adapt_to_backbone
from configs.claims import STATED
from configs.errors import ModelError
from configs.overrides import resolve
from configs.schema import RunConfig
from probes.findings.facts import Facts
from probes.record import Record, Rows
from safe.models.backbones import Backbone, load_backbone, meta_backbone
from safe.models.safe_model import SAFEModel

_GRADIENT, _ADAM = 4, 8
_PROMPT_TOKENS = 24
"""LLaVA-1.5's prompt for a caption, rounded up."""


@dataclass(frozen=True)
class MemoryPart:
    """One summand of the memory plan."""

    name: str
    bytes: int
    formula: str

    def to_json(self) -> dict[str, Any]:
        """The part as a JSON-safe dictionary."""
        return {"name": self.name, "bytes": self.bytes, "formula": self.formula}


def sized_model(
    name: str, assignments: Any, backbone_name: str | None, console: Console
) -> tuple[SAFEModel, RunConfig]:
    """The model of a configuration, on the meta device where its architecture is built in.

    Raises:
        SafeError: an unknown configuration, or a backbone that is not there.
    """
    config, explicit = resolve(name, None, assignments)
    wanted = backbone_name or config.model.backbone
    config = replace(config, model=replace(config.model, quantization=None, device_map=None))
    backbone = _backbone(wanted, config, console)
    config, notes = adapt_to_backbone(
        config, backbone.hidden_size, backbone.num_layers, backbone.name, explicit
    )
    for note in notes:
        console.print(f"  {note}", markup=False)
    with torch.device(next(backbone.model.parameters()).device):
        return SAFEModel(backbone, config.model), config


def _backbone(name: str, config: RunConfig, console: Console) -> Backbone:
    dtype = config.model.dtype
    try:
        backbone = meta_backbone(name)
    except ModelError:
        return load_backbone(name, dtype=dtype)
    backbone.model.to(getattr(torch, dtype))
    console.print(f"backbone: {name} in {dtype}, counted without weights", markup=False)
    return backbone


def planned_optimizer(model: SAFEModel, config: RunConfig) -> Optimizer:
    """The training's parameters and peak learning rates in an optimizer that holds no state."""
    members = model.trainable_groups()
    rates = {"projector": config.optim.lr_projector, "adapter": config.optim.lr_adapter}
    return SGD([{"params": list(members[name].values()), "lr": lr} for name, lr in rates.items()])


def memory_plan(model: nn.Module, config: RunConfig, facts: Facts) -> list[MemoryPart]:
    """Bytes of a training step on one device: exact but for the activations."""
    total = int(facts.value("parameters", "model", "bytes") or 0)
    trainable = int(facts.value("parameters", "model", "trainable") or 0)
    return [
        MemoryPart("weights", total, "bytes of all parameters, each once"),
        MemoryPart("gradients", trainable * _GRADIENT, f"{_GRADIENT} x trainable (float32)"),
        MemoryPart("optimizer", trainable * _ADAM, f"{_ADAM} x trainable (AdamW: two moments)"),
        _activations(model, config),
    ]


def _activations(model: Any, config: RunConfig) -> MemoryPart:
    """What autograd keeps of the frozen decoder above the first fusion layer.

    A frozen linear layer keeps nothing. Kept per token and layer: the float32 inputs of two norms
    (8 H), query, key, value and result of the attention (4 H b), three products of the MLP (3 I b).
    """
    text = model.backbone.config.get_text_config(decoder=True)
    b = 2 if config.model.dtype == "bfloat16" else 4
    tokens = config.optim.batch_size * (_PROMPT_TOKENS + config.data.max_caption_tokens + 1)
    layers = config.model.num_layers - 1 - min(config.model.fusion.layers)
    per_layer = 8 * text.hidden_size + 4 * text.hidden_size * b + 3 * text.intermediate_size * b
    if config.model.gradient_checkpointing:
        kept, words = layers * text.hidden_size * b + per_layer, "L H b + one layer"
    else:
        kept, words = layers * per_layer, "L (8 H + 4 H b + 3 I b)"
    supervised = config.optim.batch_size * (config.data.max_caption_tokens + 1)
    logits = supervised * text.vocab_size * (b + 8)
    formula = (
        f"estimate: {tokens} tokens x {words}, L = {layers} layers above the first fusion, "
        f"b = {b} bytes; and {supervised} x {text.vocab_size} logits x {b + 8} bytes"
    )
    return MemoryPart("activations", tokens * kept + logits, formula)


def claim_records(name: str, facts: Facts, plan: list[MemoryPart]) -> list[Record]:
    """Stated and measured numbers side by side (probe ``claims``); none for other configs."""
    stated = STATED.get(name)
    if stated is None:
        return []
    rows = Rows("claims", 0)
    measured: Mapping[str, tuple[float, str]] = {
        "projector": (stated.projector, "projector"),
        "fusion": (stated.lora, "fusion"),
        "model": (stated.trainable, "model"),
    }
    for component, (claim, source) in measured.items():
        rows.add(component, "stated", claim, "parameters")
        found = facts.value("parameters", source, "trainable")
        if found is not None:
            rows.add(component, "measured", found, "parameters")
    if stated.memory is not None:
        rows.add("memory", "stated_low", stated.memory[0], "bytes")
        rows.add("memory", "stated_high", stated.memory[1], "bytes")
        rows.add("memory", "measured", sum(part.bytes for part in plan), "bytes")
    return rows.records
