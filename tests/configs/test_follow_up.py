"""The commands that follow a run ask safe-train for exactly what they mean."""

import shlex
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.adapt import adapt_to_backbone
from configs.follow_up import (
    advanced,
    command_line,
    differences,
    flat,
    following,
    mended,
    own_settings,
    rolled_back,
)
from configs.model_configs import CONFIGS, get_config
from configs.overrides import apply_values
from configs.schema import RunConfig
from safe.cli import _config, _parser


def asked(words: list[str]) -> tuple[RunConfig, frozenset[str]]:
    """What safe-train understands, after a shell has read the command."""
    parser, _ = _parser()
    return _config(parser.parse_args(shlex.split(shlex.join(words))[1:]))


def begun(name: str, **changes: Any) -> RunConfig:
    """A run of ``name`` as it is saved: on the embedded backbone, with changes of its user."""
    values = {"model.backbone": "embedded", "model.audio_encoder": "embedded",
              "data.root": "/data/my clips", "optim.seed": 4}  # fmt: skip
    config = apply_values(get_config(name), values | {"optim.epochs": 7})
    config, _ = adapt_to_backbone(config, 192, 10, "embedded")
    return apply_values(config, {k.replace("__", "."): v for k, v in changes.items()})


def run_again(words: list[str]) -> RunConfig:
    """What would be saved for a run that this command starts."""
    config, explicit = asked(words)
    return adapt_to_backbone(config, 192, 10, "embedded", explicit)[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_repeating_without_a_change_is_the_same_run(name: str) -> None:
    run = begun(name)
    assert flat(run_again(mended(run, {}))) == flat(run)


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "model.projector.scale": st.sampled_from([1.89, 2.0, 30.0]),
        "model.projector.bottleneck_dim": st.sampled_from([None, 64]),
        "model.fusion.layers": st.sampled_from([(1, 5), (2, 4, 6, 8)]),
        "model.fusion.gate_init": st.sampled_from([0.05, 0.2]),
        "optim.epochs": st.integers(1, 40),
        "optim.max_steps": st.sampled_from([None, 9]),
        "data.audio": st.sampled_from(["own", "mean"]),
        "data.max_caption_tokens": st.just(64),
        "evaluation.num_beams": st.just(3),
    },
)


@given(st.sampled_from(sorted(CONFIGS)), CHANGES, CHANGES)
@settings(max_examples=60, deadline=None)
def test_mended_run_is_the_run_with_the_changes(
    name: str, own: dict[str, Any], changes: dict[str, Any]
) -> None:
    run = apply_values(begun(name), own)
    assert flat(run_again(mended(run, changes))) == flat(apply_values(run, changes))


def test_following_takes_over_pieces_and_data_but_not_the_amount() -> None:
    run = begun("phase1", optim__max_steps=9, data__audio="mean")
    config = following(run, "phase2")
    assert (config.name, config.optim.epochs, config.optim.max_steps) == ("phase2", 50, None)
    assert config.data.root == "/data/my clips" and config.data.audio == "own"
    assert asked(command_line(config))[0] == config


def test_advancing_keeps_what_made_the_run_work() -> None:
    run = begun("phase1", model__projector__scale=1.89, model__fusion__gate_init=0.419)
    config = run_again(advanced(run))
    assert (config.model.projector.scale, config.model.fusion.gate_init) == (1.89, 0.419)
    assert config.model.projector.bottleneck_dim is None and config.optim.epochs == 50
    assert own_settings(run) == {
        "model.projector.scale": (10.0, 1.89), "model.fusion.gate_init": (0.3, 0.419)
    }  # fmt: skip


def test_rollback_is_what_its_command_asks_for() -> None:
    run = begun("phase1", optim__max_steps=9)
    config, _ = rolled_back(run)
    assert asked(command_line(config))[0] == config


def test_differences_name_both_values() -> None:
    run = begun("phase1")
    louder = replace(run, model=replace(run.model, projector=replace(run.model.projector, scale=3)))
    assert differences(run, louder) == [("model.projector.scale", 10.0, 3)]
    assert differences(run, run) == []
