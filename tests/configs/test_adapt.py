"""A config made for one backbone on another: the rule, its printed lines, its refusals."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from configs.adapt import adapt_to_backbone, with_effective_batch
from configs.errors import ConfigError
from configs.model_configs import get_config
from configs.overrides import resolve
from configs.schema import RunConfig

PHASE1 = get_config("phase1")


def test_phase1_on_smollm2() -> None:
    config, lines = adapt_to_backbone(PHASE1, 576, 30, "smollm2")
    assert config.model.fusion == replace(PHASE1.model.fusion, layers=(6, 12, 18, 24), lora_rank=7)
    assert config.model.projector == PHASE1.model.projector
    assert (config.model.hidden_size, config.model.num_layers) == (576, 30)
    assert config.optim == replace(PHASE1.optim, batch_size=32, accumulation=4)
    assert lines == [
        "config made for 40 layers of 5120 -> smollm2 has 30 layers of 576: "
        "adapted by the rules below",
        "model.fusion.layers [8, 16, 24, 32] of 40 -> [6, 12, 18, 24] of 30: same relative depth",
        "model.fusion.lora_rank 64 of 5120 -> 7 of 576: same ratio to the hidden size",
        "optim.batch_size x accumulation 4 x 32 -> 32 x 4: the same 128 clips per step, "
        "in fewer passes",
    ]


def test_phase1_on_ten_layers() -> None:
    config, _ = adapt_to_backbone(PHASE1, 192, 10, "embedded")
    assert config.model.fusion.layers == (2, 4, 6, 8)
    assert config.model.fusion.lora_rank == 2  # 2.4


def test_rank_stays_at_least_one() -> None:
    config, _ = adapt_to_backbone(get_config("full"), 192, 30, "tiny")
    assert config.model.fusion.lora_rank == 1  # 0.3


def test_alpha_follows_the_rank() -> None:
    fusion = replace(PHASE1.model.fusion, lora_alpha=128.0)
    config = replace(PHASE1, model=replace(PHASE1.model, fusion=fusion))
    adapted, lines = adapt_to_backbone(config, 576, 30, "smollm2")
    assert adapted.model.fusion.alpha / adapted.model.fusion.lora_rank == 2.0
    assert "model.fusion.lora_alpha 128 -> 14: same ratio to the rank" in lines


def test_same_backbone_changes_nothing() -> None:
    model = PHASE1.model
    assert adapt_to_backbone(PHASE1, 5120, 40, model.backbone) == (PHASE1, [])


def test_same_size_under_another_name_changes_the_name_only() -> None:
    config, lines = adapt_to_backbone(PHASE1, 5120, 40, "/models/llava")
    assert config == replace(PHASE1, model=replace(PHASE1.model, backbone="/models/llava"))
    assert len(lines) == 1


def test_large_backbone_keeps_its_micro_batch() -> None:
    config, lines = adapt_to_backbone(PHASE1, 4096, 32, "llava-7b")
    assert config.optim == PHASE1.optim
    assert config.model.fusion.lora_rank == 51  # 51.2
    assert not any("batch" in line for line in lines)


def test_what_the_user_set_is_taken_literally() -> None:
    config, explicit = resolve(
        "phase1",
        assignments=[
            "model.fusion.layers=[1, 2]",
            "model.fusion.lora_rank=16",
            "optim.batch_size=2",
        ],
    )
    adapted, lines = adapt_to_backbone(config, 576, 30, "smollm2", explicit)
    assert adapted.model.fusion == config.model.fusion
    assert adapted.optim == config.optim
    assert len(lines) == 1


def test_explicit_layers_beyond_the_backbone_are_refused() -> None:
    config, explicit = resolve("phase1", assignments=["model.fusion.layers=[8, 35]"])
    with pytest.raises(ConfigError, match="layer 35 does not exist; .*num_layers = 30"):
        adapt_to_backbone(config, 576, 30, "smollm2", explicit)


def test_explicit_rank_beyond_the_backbone_is_refused() -> None:
    config, explicit = resolve("phase1", assignments=["model.fusion.lora_rank=600"])
    with pytest.raises(ConfigError, match="lora_rank = 600: must be at most .* = 576"):
        adapt_to_backbone(config, 576, 30, "smollm2", explicit)


def test_layers_that_fall_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two of them fall together .* 4 layers .*--set"):
        adapt_to_backbone(_with_layers((1, 2, 3)), 192, 4, "tiny")


def _with_layers(layers: tuple[int, ...]) -> RunConfig:
    model = replace(PHASE1.model, fusion=replace(PHASE1.model.fusion, layers=layers))
    return replace(PHASE1, model=model)


@given(
    layers=st.sets(st.integers(0, 39), min_size=1, max_size=6),
    num_layers=st.integers(1, 100),
    hidden_size=st.integers(64, 8192),
)
def test_adapted_config_fits_and_keeps_depth(
    layers: set[int], num_layers: int, hidden_size: int
) -> None:
    config = _with_layers(tuple(sorted(layers)))
    try:
        adapted, _ = adapt_to_backbone(config, hidden_size, num_layers, "other")
    except ConfigError:
        assume(False)
    for old, new in zip(sorted(layers), adapted.model.fusion.layers, strict=True):
        assert abs(new / num_layers - old / 40) <= 1 / num_layers
    assert abs(adapted.model.fusion.lora_rank - 64 * hidden_size / 5120) <= 1
    assert adapted.optim.effective_batch == config.optim.effective_batch


@pytest.mark.parametrize(
    ("clips", "expected"), [(128, (4, 32)), (16, (4, 4)), (2, (2, 1)), (7, (1, 7)), (6, (3, 2))]
)
def test_effective_batch(clips: int, expected: tuple[int, int]) -> None:
    optim = with_effective_batch(PHASE1, clips).optim
    assert (optim.batch_size, optim.accumulation) == expected


def test_effective_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="effective batch = 0: must be at least 1"):
        with_effective_batch(PHASE1, 0)
