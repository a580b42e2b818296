"""The rule by which a config made for one backbone runs on another; every change is reported."""

from collections.abc import Collection
from dataclasses import replace

from configs.errors import ConfigError
from configs.schema import FusionConfig, ModelConfig, OptimConfig, RunConfig

SMALL_HIDDEN_SIZE = 1024
"""Up to this hidden size (well under 1e9 parameters) activations are cheap."""
LARGEST_MICRO_BATCH = 32
"""Micro-batch that a small backbone is given at most."""


def adapt_to_backbone(
    config: RunConfig,
    hidden_size: int,
    num_layers: int,
    backbone_name: str,
    explicit: Collection[str] = (),
) -> tuple[RunConfig, list[str]]:
    """Return `config` for a backbone of this size, and one line per change (none: no lines).

    - Fusion layers keep their relative depth, the LoRA rank its ratio to the hidden size (halves
      rounded up, at least 1), and lora_alpha its ratio to the rank.
    - A small backbone runs the clips of one optimizer step in fewer, larger micro-batches; the
      gradient is the same, because the loss is normalised over the whole step.
    - Nothing else changes. The projector's bottleneck stays because its ratio is to the audio
      embedding, which every backbone shares.

    Dotted keys in `explicit` were set by the user and are taken literally.

    Raises:
        ConfigError: two fusion layers would fall together, or an explicit value does not fit.
    """
    model, optim, lines = config.model, config.optim, list[str]()
    if (hidden_size, num_layers) != (model.hidden_size, model.num_layers):
        lines.append(
            f"config made for {model.num_layers} layers of {model.hidden_size} -> {backbone_name} "
            f"has {num_layers} layers of {hidden_size}: adapted by the rules below"
        )
    elif backbone_name != model.backbone:
        lines.append(f"model.backbone {model.backbone} -> {backbone_name}: of the same size")
    fusion = _adapt_layers(model, num_layers, explicit, lines)
    fusion = _adapt_rank(fusion, model.hidden_size, hidden_size, explicit, lines)
    if hidden_size <= SMALL_HIDDEN_SIZE:
        optim = _regroup(optim, explicit, lines)
    model = replace(
        model,
        backbone=backbone_name,
        hidden_size=hidden_size,
        num_layers=num_layers,
        fusion=fusion,
    )
    return replace(config, model=model, optim=optim), lines


def adapt_to_encoder(
    config: RunConfig, width: int, encoder_name: str, explicit: Collection[str] = ()
) -> tuple[RunConfig, list[str]]:
    """Return `config` for features of this width, and one line when that changed it.

    Raises:
        ConfigError: the user set another width.
    """
    model = config.model
    if width == model.audio_dim:
        return config, []
    what = f"{model.audio_features} features of {encoder_name}"
    if "model.audio_dim" in explicit:
        raise ConfigError(
            f"model.audio_dim = {model.audio_dim}: the {what} are {width} wide; leave it out"
        )
    lines = [f"model.audio_dim {model.audio_dim} -> {width}: width of the {what}"]
    return replace(config, model=replace(model, audio_dim=width)), lines


def with_effective_batch(config: RunConfig, clips: int) -> RunConfig:
    """Return `config` with `clips` per optimizer step, in micro-batches no larger than before.

    Raises:
        ConfigError: `clips` is below 1.
    """
    if clips < 1:
        raise ConfigError(f"effective batch = {clips}: must be at least 1")
    micro = _largest_divisor(clips, config.optim.batch_size)
    return replace(
        config, optim=replace(config.optim, batch_size=micro, accumulation=clips // micro)
    )


def _adapt_layers(
    model: ModelConfig, num_layers: int, explicit: Collection[str], lines: list[str]
) -> FusionConfig:
    old = list(model.fusion.layers)
    if num_layers == model.num_layers or "model.fusion.layers" in explicit:
        return model.fusion
    new = [min(_scaled(x, num_layers, model.num_layers), num_layers - 1) for x in old]
    if len(set(new)) < len(new):
        raise ConfigError(
            f"model.fusion.layers = {old} of {model.num_layers}: at the same relative depth two "
            f"of them fall together on a backbone of {num_layers} layers ({new}); choose the "
            "layers yourself with --set model.fusion.layers=[...]"
        )
    lines.append(
        f"model.fusion.layers {old} of {model.num_layers} -> {new} of {num_layers}: "
        "same relative depth"
    )
    return replace(model.fusion, layers=tuple(new))


def _adapt_rank(
    fusion: FusionConfig, old_size: int, new_size: int, explicit: Collection[str], lines: list[str]
) -> FusionConfig:
    old, new = fusion.lora_rank, max(1, _scaled(fusion.lora_rank, new_size, old_size))
    if new == old or "model.fusion.lora_rank" in explicit:
        return fusion
    lines.append(
        f"model.fusion.lora_rank {old} of {old_size} -> {new} of {new_size}: "
        "same ratio to the hidden size"
    )
    if fusion.lora_alpha is None or "model.fusion.lora_alpha" in explicit:
        return replace(fusion, lora_rank=new)
    alpha = fusion.lora_alpha * new / old
    lines.append(
        f"model.fusion.lora_alpha {fusion.lora_alpha:g} -> {alpha:g}: same ratio to the rank"
    )
    return replace(fusion, lora_rank=new, lora_alpha=alpha)


def _regroup(optim: OptimConfig, explicit: Collection[str], lines: list[str]) -> OptimConfig:
    micro = _largest_divisor(optim.effective_batch, LARGEST_MICRO_BATCH)
    if micro <= optim.batch_size or {"optim.batch_size", "optim.accumulation"} & set(explicit):
        return optim
    new = replace(optim, batch_size=micro, accumulation=optim.effective_batch // micro)
    lines.append(
        f"optim.batch_size x accumulation {optim.batch_size} x {optim.accumulation} -> "
        f"{new.batch_size} x {new.accumulation}: the same {optim.effective_batch} clips per step, "
        "in fewer passes"
    )
    return new


def _scaled(value: int, new: int, old: int) -> int:
    """Return value * new / old rounded to the nearest integer, halves up."""
    return (2 * value * new + old) // (2 * old)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)
