"""Random valid configs."""

from dataclasses import replace

import pytest
from hypothesis import strategies as st

from configs.model_configs import CONFIGS
from configs.schema import FusionConfig, ModelConfig, OptimConfig, ProjectorConfig, RunConfig

_positive = st.floats(1e-6, 1e6)
_texts = st.text(min_size=1, max_size=12).filter(str.strip)


@st.composite
def _models(draw: st.DrawFn) -> ModelConfig:
    num_layers = draw(st.integers(1, 80))
    hidden_size = draw(st.integers(1, 8192))
    gate_max = draw(st.floats(0.01, 4))
    least = draw(st.integers(1, 64))
    return ModelConfig(
        backbone=draw(_texts),
        hidden_size=hidden_size,
        num_layers=num_layers,
        audio_encoder=draw(_texts),
        prompt=draw(st.none() | st.text(max_size=20)),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        quantization=draw(st.sampled_from([None, "8bit", "4bit"])),
        device_map=draw(st.none() | _texts),
        gradient_checkpointing=draw(st.booleans()),
        projector=ProjectorConfig(
            kind=draw(st.sampled_from(["mlp", "adaptive"])),
            bottleneck_dim=draw(st.none() | st.integers(1, 4096)),
            num_tokens=draw(st.integers(least, 64)),
            min_tokens=least,
            scale=draw(_positive),
        ),
        fusion=FusionConfig(
            layers=tuple(sorted(draw(st.sets(st.integers(0, num_layers - 1), min_size=1)))),
            lora_rank=draw(st.integers(1, hidden_size)),
            lora_alpha=draw(st.none() | _positive),
            gate_init=draw(st.floats(0, gate_max)),
            gate_max=gate_max,
            gate_warmup_steps=draw(st.integers(0, 5000)),
        ),
    )


@st.composite
def _runs(draw: st.DrawFn) -> RunConfig:
    return replace(
        draw(st.sampled_from(list(CONFIGS.values()))),
        name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)),
        description=draw(st.text(max_size=30)),
        model=draw(_models()),
        optim=OptimConfig(
            lr_projector=draw(_positive),
            lr_adapter=draw(_positive),
            weight_decay=draw(st.floats(0, 1)),
            batch_size=draw(st.integers(1, 64)),
            accumulation=draw(st.integers(1, 64)),
            epochs=draw(st.integers(1, 100)),
            max_steps=draw(st.none() | st.integers(1, 10**6)),
            precision=draw(st.sampled_from(["no", "bf16"])),
            seed=draw(st.integers(0, 2**32 - 1)),
        ),
    )


@pytest.fixture(scope="session")
def run_configs() -> st.SearchStrategy[RunConfig]:
    """Return a strategy for whole, valid run configs."""
    return _runs()
