"""Bytes of a training step on one device, part by part, each with the formula it comes from."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from configs.schema import RunConfig
from safe.training.retention_images import RetentionImages, image_tokens

CUDA_CONTEXT = 1_000_000_000
"""Bytes that CUDA and its libraries take before the first tensor; about 0.5 to 1 GB."""
USABLE = 0.95
"""Share of a GPU's memory that is planned for; the rest goes to the allocator's fragments."""
PROMPT_TOKENS = 24
"""LLaVA-1.5's prompt for a caption, rounded up; used where there is no tokenizer to ask."""

_GRADIENT, _ADAM, _FISHER, _TRIAL = 4, 8, 8, 16
_BLOCK_4BIT, _LEVELS_4BIT = 64, 16


@dataclass(frozen=True)
class MemoryPart:
    """One summand of the memory plan."""

    name: str
    bytes: int
    formula: str

    def to_json(self) -> dict[str, Any]:
        """The part as a JSON-safe dictionary."""
        return {"name": self.name, "bytes": self.bytes, "formula": self.formula}


def training_memory(
    weights: int,
    trainable: int,
    backbone: Any,
    config: RunConfig,
    prompt_tokens: int = PROMPT_TOKENS,
) -> list[MemoryPart]:
    """Bytes of a training step on one device: exact but for the activations.

    Args:
        weights: bytes of all parameters, each once.
        trainable: number of trainable parameters; they are float32.
        backbone: the backbone; its configuration counts.
        config: precision, batch, caption length, fusion layers, retention.
        prompt_tokens: tokens in front of every caption.

    Returns:
        The parts, whose sum is what the device must hold; ``probes`` last.
    """
    activations = _activations(backbone, config, prompt_tokens)
    parts = [
        MemoryPart("weights", weights, "bytes of all parameters, each once"),
        MemoryPart("gradients", trainable * _GRADIENT, f"{_GRADIENT} x trainable (float32)"),
        MemoryPart("optimizer", trainable * _ADAM, f"{_ADAM} x trainable (AdamW: two moments)"),
        activations,
    ]
    if config.retention.variant in ("fisher_retention", "full_retention"):
        why = f"{_FISHER} x trainable (start and importance, float32)"
        parts.append(MemoryPart("retention", trainable * _FISHER, why))
    return [*parts, _probes(trainable, activations.bytes)]


def _probes(trainable: int, activations: int) -> MemoryPart:
    """What the probes of a training (all but with ``--probe-every 0``) need beyond its own step.

    The ledger of gradients decides. In its backward passes, on micro-batches that are no larger,
    it keeps the mean gradient. In its trial step there are no activations any more, but the
    values before the step, a second pair of moments, and of one tensor how far it has moved; where
    one tensor has nearly all elements, as the projector's, that is as much again.
    """
    needed = max(trainable * _GRADIENT, trainable * _TRIAL - activations)
    why = (
        f"the larger of {_GRADIENT} x trainable (mean gradient) and {_TRIAL} x trainable (a trial "
        "step: values before, two moments, a difference) less the activations, which are gone then"
    )
    return MemoryPart("probes", needed, why)


def _activations(backbone: Any, config: RunConfig, prompt_tokens: int) -> MemoryPart:
    """What autograd keeps of the frozen decoder above the first fusion layer.

    A frozen linear layer keeps nothing, but an 8-bit one its input. Kept per token and layer: the
    float32 inputs of two norms (8 H), query, key, value and result of the attention (4 H b), three
    products of the MLP (3 I b), and for 8 bits the results of the norms (2 H b); per token and
    fusion layer: the float32 input of the norm (4 H), the inputs of two LoRAs, the query, what was
    heard and the branch (5 H b). A step of retention runs the model on its own, on pictures that
    may be longer than a micro-batch of captions.
    """
    text = backbone.config.get_text_config(decoder=True)
    b = 2 if config.model.dtype == "bfloat16" else 4
    length = prompt_tokens + config.data.max_caption_tokens + 1
    tokens = max(config.optim.batch_size * length, _retained_tokens(backbone, config, length))
    layers = config.model.num_layers - 1 - min(config.model.fusion.layers)
    fusions = len(config.model.fusion.layers)
    width, inner = text.hidden_size, text.intermediate_size
    times = 6 if config.model.quantization == "8bit" else 4
    layer, fusion = 8 * width + times * width * b + 3 * inner * b, 4 * width + 5 * width * b
    if config.model.gradient_checkpointing:
        kept, words = layers * width * b + layer, "(L H b + one layer"
    else:
        kept, words = layers * layer, f"(L (8 H + {times} H b + 3 I b)"
    supervised = config.optim.batch_size * (config.data.max_caption_tokens + 1)
    logits = supervised * text.vocab_size * (b + 8)
    formula = (
        f"estimate: {tokens} tokens x {words} + F (4 H + 5 H b)), L = {layers} layers above the "
        f"first of F = {fusions} fusions, b = {b} bytes; and {supervised} x {text.vocab_size} "
        f"logits x {b + 8} bytes"
    )
    return MemoryPart("activations", tokens * (kept + fusions * fusion) + logits, formula)


def _retained_tokens(backbone: Any, config: RunConfig, length: int) -> int:
    """Tokens of the pictures of retention; 0 where none are shown."""
    shown = config.retention.variant in ("soft_retention", "full_retention")
    if backbone.config.model_type != "llava" or getattr(backbone, "text_only", False) or not shown:
        return 0
    return RetentionImages.SIZE * (image_tokens(backbone.config) + length)


def quantized_bytes(backbone: Any, kind: Literal["8bit", "4bit"]) -> int:
    """Bytes of a backbone's parameters when bitsandbytes holds its linear layers.

    All but the output head: int8 with a float32 scale per output row, or 4 bits with a float32
    scale per 64 weights and 16 levels per matrix. Biases, norms and embeddings stay as they are,
    and so does the vision tower that only completes the class around a text-only model.

    Args:
        backbone: on any device, unquantised; with ``get_output_embeddings()``.
        kind: 8bit or 4bit.
    """
    head = backbone.get_output_embeddings()
    total = sum(p.numel() * p.element_size() for p in backbone.parameters())
    inside = backbone.get_decoder() if getattr(backbone, "text_only", False) else backbone
    for module in inside.modules():
        if type(module) is nn.Linear and module is not head:
            weight = module.weight
            total -= weight.numel() * weight.element_size()
            if kind == "8bit":
                total += weight.numel() + 4 * module.out_features
            else:
                scales = math.ceil(weight.numel() / _BLOCK_4BIT) + _LEVELS_4BIT
                total += (weight.numel() + 1) // 2 + 4 * scales
    return total
