"""From a configuration to its projector."""

from configs.schema import ModelConfig
from safe.models.projectors import AdaptiveAudioProjector, AudioProjector
from safe.models.resampler import ResamplerProjector


def build_projector(model: ModelConfig) -> AudioProjector | ResamplerProjector:
    """The projector that ``model`` describes, freshly initialised."""
    config, local = model.projector, model.audio_features == "local"
    sizes = (model.audio_dim, model.hidden_size, config.num_tokens)
    if config.kind == "resampler":
        assert config.bottleneck_dim is not None  # the configuration checks it
        return ResamplerProjector(*sizes, config.bottleneck_dim, config.scale, local=local)
    shape = (*sizes, config.bottleneck_dim, config.scale)
    if config.kind == "adaptive":
        return AdaptiveAudioProjector(*shape, min_tokens=config.min_tokens)
    return AudioProjector(*shape)
