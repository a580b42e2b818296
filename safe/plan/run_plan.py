"""The plan of a run: sizes, memory, the micro-batch that fits, steps, and what was stated."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from configs.claims import STATED, TRAINING_HOURS, StatedSizes
from configs.errors import ConfigError
from configs.schema import RunConfig
from safe.models.safe_model import SAFEModel
from safe.plan.clips import Examples, count_examples
from safe.plan.memory import (
    CUDA_CONTEXT,
    PROMPT_TOKENS,
    USABLE,
    MemoryPart,
    quantized_bytes,
    training_memory,
)
from safe.plan.sized import sized_model

_SAVERS: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": True},
    {"quantization": "8bit"},
    {"quantization": "4bit"},
    {"quantization": "4bit", "gradient_checkpointing": True},
)
"""What to give up, least first, when no micro-batch fits."""
REFERENCE_FLOPS = 0.4 * 312e12
"""Of an A100 in bfloat16, at 40% of its peak: what well-fed matrix products usually reach."""


class Device(NamedTuple):
    """Memory to plan for."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Fit:
    """One way to run the same optimizer step, and its largest micro-batch that fits."""

    settings: dict[str, Any]
    """Fields of the model's configuration that differ from the plan's; empty for none."""
    weights: int
    """Bytes of all weights."""
    batch_size: int | None
    """Largest micro-batch that divides the effective batch and fits; None when not even 1 does."""
    accumulation: int | None
    """Micro-batches per step with that."""
    total: int
    """Bytes of a step with that micro-batch (with 1 when none fits)."""

    @property
    def assignments(self) -> tuple[str, ...]:
        """What to give to ``--set``; nothing when it does not fit."""
        if self.batch_size is None:
            return ()
        own = {f"model.{key}": str(value).lower() for key, value in self.settings.items()}
        own |= {"optim.batch_size": str(self.batch_size)}
        own |= {"optim.accumulation": str(self.accumulation)}
        return tuple(f"{key}={value}" for key, value in own.items())

    def to_json(self) -> dict[str, Any]:
        """The way as a JSON-safe dictionary."""
        return {**vars(self), "set": list(self.assignments)}


@dataclass(frozen=True)
class Plan:
    """Everything that can be said of a run before it starts."""

    config: RunConfig
    notes: tuple[str, ...]
    parameters: dict[str, int]
    memory: tuple[MemoryPart, ...]
    device: Device | None
    fits: tuple[Fit, ...]
    """The configuration's own way and, when it does not fit, others; none without a device."""
    examples: Examples
    prompt: str
    """Empty where only the tokenizer, which is not there, could tell."""
    prompt_tokens: int
    exact_prompt: bool
    """Whether a tokenizer counted the prompt."""
    flops: float
    """Operations in the decoder's linear layers, all steps, every caption at its limit."""

    @property
    def total_bytes(self) -> int:
        """Bytes of a training step as configured."""
        return sum(part.bytes for part in self.memory)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step, at most."""
        limit = self.config.data.max_caption_tokens + 1
        return self.config.optim.effective_batch * (self.prompt_tokens + limit)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last may be a smaller one."""
        optim = self.config.optim
        return math.ceil(math.ceil(self.examples.captions / optim.batch_size) / optim.accumulation)

    @property
    def steps(self) -> int:
        """Optimizer steps of the training."""
        optim = self.config.optim
        every = self.steps_per_epoch * optim.epochs
        return min(every, optim.max_steps or every)

    @property
    def hours(self) -> float:
        """Hours on the reference GPU, without listening and evaluation."""
        return self.flops / REFERENCE_FLOPS / 3600

    @property
    def stated(self) -> StatedSizes | None:
        """What was stated of this very configuration; None of others, and on another backbone."""
        from configs.model_configs import CONFIGS

        known = CONFIGS.get(self.config.name)
        same = known is not None and (known.model, known.optim) == (
            self.config.model,
            self.config.optim,
        )
        return STATED.get(self.config.name) if same else None

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON-safe dictionary; bytes, tokens, steps and hours as numbers."""
        stated = self.stated
        return {
            "config": self.config.to_dict(),
            "notes": list(self.notes),
            "parameters": self.parameters,
            "memory": [part.to_json() for part in self.memory],
            "memory_total": self.total_bytes,
            "device": None if self.device is None else self.device._asdict(),
            "fits": [fit.to_json() for fit in self.fits],
            "examples": self.examples._asdict(),
            "tokens_per_step": self.tokens_per_step,
            "steps_per_epoch": self.steps_per_epoch,
            "steps": self.steps,
            "hours_at_40_percent_of_an_a100": self.hours,
            "prompt": self.prompt,
            "prompt_tokens": self.prompt_tokens,
            "prompt_tokens_counted": self.exact_prompt,
            "stated": None if stated is None else {**vars(stated), "hours": TRAINING_HOURS},
        }


def plan_run(
    name: str,
    assignments: Iterable[str] = (),
    *,
    backbone: str | None = None,
    gpu_memory: float | None = None,
) -> Plan:
    """Plan a run of a configuration; seconds, without weights.

    Args:
        name: of the configuration.
        assignments: KEY=VALUE of ``--set``.
        backbone: another backbone than the configuration's.
        gpu_memory: GB (1e9 bytes) to plan for; None for the GPU of this machine, if any.

    Raises:
        SafeError: an unknown configuration, a backbone or data that cannot be read.
    """
    device = _device(gpu_memory)
    notes: list[str] = []
    model, config = sized_model(name, assignments, backbone, notes.append)
    counted = model.tokenizer is not None
    prompt_tokens = (
        len(model.tokenizer(model.prompt.rstrip(" "))["input_ids"]) if counted else PROMPT_TOKENS
    )
    examples = count_examples(config.data)
    plan = Plan(
        config=config,
        notes=tuple(notes),
        parameters=_parameters(model),
        memory=tuple(_memory(model, config, prompt_tokens)),
        device=device,
        fits=(),
        examples=examples,
        prompt=model.prompt,
        prompt_tokens=prompt_tokens,
        exact_prompt=counted,
        flops=0.0,
    )
    flops = plan.tokens_per_step * plan.steps * _flops_per_token(model, config)
    return replace(plan, flops=flops, fits=_fits(model, config, prompt_tokens, device))


def _device(gpu_memory: float | None) -> Device | None:
    if gpu_memory is not None:
        if not 0 < gpu_memory < math.inf:
            raise ConfigError(f"--gpu-memory {gpu_memory:g}: must be above 0 GB")
        return Device(f"{gpu_memory:g} GB", int(gpu_memory * 1e9))
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return Device(f"{found.name} ({found.total_memory / 1e9:.0f} GB)", found.total_memory)


def _parameters(model: SAFEModel) -> dict[str, int]:
    """Parameters by component, each once."""
    groups = model.trainable_groups()
    projector = sum(p.numel() for p in groups["projector"].values())
    trainable = projector + sum(p.numel() for p in groups["adapter"].values())
    gates = sum(block.residual.residual_scale.numel() for block in model.fusion.blocks().values())
    frozen = sum(p.numel() for p in model.parameters()) - trainable
    return {
        "frozen": frozen,
        "projector": projector,
        "lora": trainable - projector - gates,
        "gates": gates,
        "trainable": trainable,
    }


def _memory(model: SAFEModel, config: RunConfig, prompt_tokens: int) -> list[MemoryPart]:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if config.model.quantization is not None:
        whole = sum(p.numel() * p.element_size() for p in model.backbone.parameters())
        weights += quantized_bytes(model.backbone, config.model.quantization) - whole
    return training_memory(weights, trainable, model.backbone, config, prompt_tokens)


def _fits(
    model: SAFEModel, config: RunConfig, prompt_tokens: int, device: Device | None
) -> tuple[Fit, ...]:
    if device is None:
        return ()
    room = int(device.bytes * USABLE) - CUDA_CONTEXT
    own = _fit({}, model, config, prompt_tokens, room)
    if own.batch_size is not None:
        return (own,)
    ways = [w for w in _SAVERS if any(getattr(config.model, k) != v for k, v in w.items())]
    return (own, *(_fit(way, model, config, prompt_tokens, room) for way in ways))


def _fit(
    settings: dict[str, Any], model: SAFEModel, config: RunConfig, prompt_tokens: int, room: int
) -> Fit:
    """Find the largest micro-batch that fits, from the largest divisor of the batch down."""
    clips = config.optim.effective_batch
    changed = replace(config, model=replace(config.model, **settings))
    for micro in range(clips, 0, -1):
        if clips % micro:
            continue
        optim = replace(config.optim, batch_size=micro, accumulation=clips // micro)
        parts = _memory(model, replace(changed, optim=optim), prompt_tokens)
        total = sum(part.bytes for part in parts)
        if total <= room:
            return Fit(settings, parts[0].bytes, micro, clips // micro, total)
    return Fit(settings, parts[0].bytes, None, None, total)


def _flops_per_token(model: SAFEModel, config: RunConfig) -> float:
    """Forward through all decoder layers, and back to the first fusion (no weight gradients)."""
    layers = list(model.layers.values())
    sizes = [
        sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
        for layer in layers
    ]
    return 2.0 * (sum(sizes) + sum(sizes[min(config.model.fusion.layers) + 1 :]))
