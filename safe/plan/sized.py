"""A configuration's model on torch's meta device: all its parameters, none of their values."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from configs.adapt import adapt_to_backbone, adapt_to_encoder
from configs.overrides import resolve
from configs.schema import RunConfig
from safe.models.meta import planned_backbone
from safe.models.safe_model import SAFEModel
from safe.plan.widths import local_width


def sized_model(
    name: str, assignments: Iterable[str], backbone_name: str | None, tell: Callable[[str], object]
) -> tuple[SAFEModel, RunConfig]:
    """Return the model of a configuration without weights, and the configuration it adapts to.

    Quantisation and device map need the weights; here every weight has ``model.dtype`` (see
    ``quantized_bytes`` for what quantising would save).

    Args:
        name: of the configuration.
        assignments: KEY=VALUE of ``--set``.
        backbone_name: another backbone than the configuration's.
        tell: called with each line on what is not as written.

    Raises:
        SafeError: an unknown configuration, a backbone that is not there, or an audio encoder's
            file that is none.
    """
    config, explicit = resolve(name, None, assignments)
    backbone = planned_backbone(backbone_name or config.model.backbone, config.model.dtype)
    tell(f"backbone: {backbone.name} in {config.model.dtype}, counted without weights")
    if config.model.prompt is not None:
        backbone.prompt = config.model.prompt
    config, notes = adapt_to_backbone(
        config, backbone.hidden_size, backbone.num_layers, backbone.name, explicit
    )
    for note in notes:
        tell(f"  {note}")
    if config.model.audio_features == "local" and "model.audio_dim" not in explicit:
        width, source = local_width(config.model.audio_encoder)
        config, notes = adapt_to_encoder(config, width, config.model.audio_encoder)
        for note in notes:
            tell(f"  {note} ({source})")
    unloaded = replace(config.model, quantization=None, device_map=None)
    with torch.device("meta"):
        return SAFEModel(backbone, unloaded), config
