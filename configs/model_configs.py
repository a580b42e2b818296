"""The registry of named configs; `python3 configs/model_configs.py` prints them as a table."""

if __name__ == "__main__":
    # Run as a script, only this folder is on sys.path. Put the repository first, so that `configs`
    # means this package from any folder, and leave the rest to the package: a config that is
    # invalid then ends in one line instead of a traceback.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from configs.table import main

    sys.exit(main())

from dataclasses import replace

from configs.errors import ConfigError, unknown
from configs.schema import (
    DataConfig,
    FusionConfig,
    ModelConfig,
    OptimConfig,
    ProjectorConfig,
    RetentionConfig,
    RunConfig,
)

_AUDIOCAPS = DataConfig(root="experiments/full_training/data/audiocaps")

DEMO = RunConfig(
    name="demo",
    description="Everything small and built in: trains in minutes on two CPU cores",
    model=ModelConfig(
        backbone="embedded",
        hidden_size=192,
        num_layers=10,
        audio_encoder="embedded",
        dtype="float32",
        # scale and gate by `safe-probe calibrate --config demo`: contribution 0.1 to 0.2 everywhere
        projector=ProjectorConfig(bottleneck_dim=256, num_tokens=8, scale=16.0),
        fusion=FusionConfig(layers=(2, 4, 6, 8), lora_rank=8, gate_init=0.8, gate_max=1.0),
    ),
    optim=OptimConfig(
        lr_projector=1e-3,
        lr_adapter=5e-4,
        batch_size=16,
        accumulation=1,
        epochs=6,
        precision="no",
    ),
    data=DataConfig(root="synthetic"),
)

FULL = RunConfig(
    name="full",
    description="The baseline: few tokens, small scale, low rank, a gate that opens slowly",
    model=ModelConfig(
        backbone="llava-hf/llava-1.5-13b-hf",
        hidden_size=5120,
        num_layers=40,
        audio_encoder="laion-clap",
        projector=ProjectorConfig(bottleneck_dim=1024, num_tokens=16, scale=2.0),
        fusion=FusionConfig(
            layers=(6, 12, 24), lora_rank=8, gate_init=0.05, gate_max=0.3, gate_warmup_steps=2000
        ),
    ),
    optim=OptimConfig(lr_projector=2e-4, lr_adapter=1e-4, batch_size=8, accumulation=16, epochs=20),
    retention=RetentionConfig(variant="soft_retention"),  # the seed does not name the baseline's
    data=_AUDIOCAPS,
)

PHASE1 = RunConfig(
    name="phase1",
    description="Signal verification: more tokens, larger scale, higher rank, an open gate",
    model=replace(
        FULL.model,
        projector=ProjectorConfig(bottleneck_dim=1024, num_tokens=32, scale=10.0),
        fusion=FusionConfig(layers=(8, 16, 24, 32), lora_rank=64, gate_init=0.3, gate_max=1.0),
    ),
    optim=OptimConfig(lr_projector=1e-3, lr_adapter=5e-4, batch_size=4, accumulation=32, epochs=20),
    retention=RetentionConfig(variant="no_retention"),
    data=_AUDIOCAPS,
)

PHASE2 = replace(
    PHASE1,
    name="phase2",
    description="Phase 1 without the projector's bottleneck (or 4096 wide), 50 to 100 epochs",
    model=replace(PHASE1.model, projector=replace(PHASE1.model.projector, bottleneck_dim=None)),
    optim=replace(PHASE1.optim, epochs=50),
)

CONFIGS: dict[str, RunConfig] = {c.name: c for c in (DEMO, FULL, PHASE1, PHASE2)}


def get_config(name: str) -> RunConfig:
    """Return the named config.

    Raises:
        ConfigError: no config has this name.
    """
    if name not in CONFIGS:
        raise ConfigError(unknown("config", name, CONFIGS))
    return CONFIGS[name]
