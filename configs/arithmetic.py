"""Trainable parameters in closed form, so that a config can be sized without building a model."""

from dataclasses import dataclass

from configs.schema import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Trainable parameters of one adapter, by component."""

    projector: int
    """Linear layers of the projector, with biases; a resampler's queries."""
    norm: int
    """Weight and bias of the projector's input LayerNorm."""
    lora: int
    """LoRA matrices on q, k, v and o of every fusion layer."""
    gates: int
    """Residual gates, one per fusion layer."""

    @property
    def total(self) -> int:
        """All trainable parameters."""
        return self.projector + self.norm + self.lora + self.gates


def linear(inputs: int, outputs: int) -> int:
    """Return the parameters of a linear layer with bias."""
    return inputs * outputs + outputs


def projector_parameters(
    audio_dim: int, bottleneck_dim: int | None, num_tokens: int, hidden_size: int
) -> int:
    """Return the parameters of D -> bottleneck -> N*H, or of D -> N*H without a bottleneck."""
    width = num_tokens * hidden_size
    if bottleneck_dim is None:
        return linear(audio_dim, width)
    return linear(audio_dim, bottleneck_dim) + linear(bottleneck_dim, width)


def resampler_parameters(
    audio_dim: int, width: int, num_tokens: int, hidden_size: int, *, local: bool
) -> int:
    """Return the parameters of the queries, values and output, and of keys over local features."""
    keys = audio_dim * width if local else 0
    return num_tokens * width + keys + linear(audio_dim, width) + linear(width, hidden_size)


def lora_parameters(rank: int, hidden_size: int, kv_width: int, num_layers: int) -> int:
    """Return rank * (inputs + outputs) summed over q, k, v and o of `num_layers` fusion layers."""
    query_and_output = 2 * rank * (hidden_size + hidden_size)
    key_and_value = 2 * rank * (hidden_size + kv_width)
    return num_layers * (query_and_output + key_and_value)


def count_parameters(model: ModelConfig, kv_width: int | None = None) -> ParameterCounts:
    """Return the trainable parameters that `model` describes.

    `kv_width` is heads * head size of the backbone's keys; the default is the hidden size, which
    is right for LLaMA-2 and too large for a backbone with grouped-query attention.
    """
    projector, fusion, hidden = model.projector, model.fusion, model.hidden_size
    sizes, width = (projector.num_tokens, hidden), projector.bottleneck_dim
    if projector.kind == "resampler":
        assert width is not None  # the configuration checks it
        local = model.audio_features == "local"
        count = resampler_parameters(model.audio_dim, width, *sizes, local=local)
    else:
        count = projector_parameters(model.audio_dim, width, *sizes)
    return ParameterCounts(
        projector=count,
        norm=2 * model.audio_dim,
        lora=lora_parameters(
            fusion.lora_rank, hidden, hidden if kv_width is None else kv_width, len(fusion.layers)
        ),
        gates=len(fusion.layers),
    )
