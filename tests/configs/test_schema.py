"""Every check of the config sections, by its message, and the round trip through a dict."""

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError, SafeError
from configs.model_configs import CONFIGS, get_config
from configs.overrides import dotted_fields
from configs.schema import (
    FusionConfig,
    ModelConfig,
    ProjectorConfig,
    RetentionConfig,
    RunConfig,
)


def _with(**changes: Any) -> dict[str, Any]:
    """Return phase1 as a dict with dotted keys (dots written as __) changed."""
    tree = get_config("phase1").to_dict()
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = tree
        for section in sections:
            place = place[section]
        place[last] = value
    return tree


WRONG = [
    ({"model__fusion__layers": [8, 40]}, r"layers = \[8, 40\]: layer 40 does not exist; .*0 to 39"),
    ({"model__fusion__layers": [8, 8]}, r"layers = \[8, 8\]: must be one or more different"),
    ({"model__fusion__layers": [16, 8]}, "ascending order"),
    ({"model__fusion__layers": []}, r"layers = \[\]: must be one or more"),
    ({"model__fusion__layers": [-1, 8]}, "from 0 on"),
    ({"model__fusion__layers": [8.5]}, r"layers = \[8.5\]: must be a list of integers"),
    ({"model__fusion__layers": [True]}, "must be a list of integers"),
    ({"model__fusion__layers": 8}, "layers = 8: must be a list of integers"),
    ({"model__fusion__lora_rank": 5121}, "lora_rank = 5121: must be at most .*hidden_size = 5120"),
    ({"model__fusion__lora_rank": 0}, "lora_rank = 0: must be at least 1"),
    ({"model__fusion__lora_alpha": 0}, "lora_alpha = 0.0: must be above 0"),
    ({"model__fusion__lora_alpha": "x"}, "must be a finite number or null"),
    ({"model__fusion__gate_init": 1.5}, "gate_init = 1.5: must be between 0 and .*gate_max = 1.0"),
    ({"model__fusion__gate_init": -0.1}, "gate_init = -0.1: must be between 0"),
    ({"model__fusion__gate_init": float("nan")}, "gate_init = nan: must be a finite number"),
    ({"model__fusion__gate_max": 0}, "gate_max = 0.0: must be above 0"),
    ({"model__fusion__gate_warmup_steps": -1}, "gate_warmup_steps = -1: must be at least 0"),
    ({"model__fusion__base": "share"}, "base = 'share': must be one of .*did you mean 'shared'"),
    ({"model__projector__num_tokens": 0}, "num_tokens = 0: must be at least 1"),
    ({"model__projector__num_tokens": True}, "num_tokens = True: must be an integer"),
    ({"model__projector__num_tokens": 32.0}, "num_tokens = 32.0: must be an integer"),
    ({"model__projector__min_tokens": 0}, "min_tokens = 0: must be at least 1"),
    ({"model__projector__scale": 0}, "scale = 0.0: must be above 0"),
    ({"model__projector__scale": float("inf")}, "scale = inf: must be a finite number"),
    ({"model__projector__bottleneck_dim": 0}, "bottleneck_dim = 0: must be at least 1"),
    ({"model__projector__kind": "mpl"}, "kind = 'mpl': .*resampler; did you mean 'mlp'"),
    (
        {"model__projector": {"kind": "adaptive", "min_tokens": 9, "num_tokens": 8}},
        "min_tokens = 9: must be at most model.projector.num_tokens = 8",
    ),
    ({"model__projector": None}, "model.projector = None: must be a mapping"),
    ({"model__hidden_size": 0}, "hidden_size = 0: must be at least 1"),
    ({"model__num_layers": "40"}, "num_layers = '40': must be an integer"),
    ({"model__audio_dim": -512}, "audio_dim = -512: must be at least 1"),
    ({"model__backbone": " "}, "backbone = ' ': must not be empty"),
    ({"model__audio_encoder": 3}, "audio_encoder = 3: must be a text"),
    ({"model__dtype": "fp16"}, "dtype = 'fp16': must be one of float32, bfloat16"),
    ({"model__quantization": "4-bit"}, "must be one of 8bit, 4bit or null; did you mean '4bit'"),
    ({"model__gradient_checkpointing": 1}, "gradient_checkpointing = 1: must be true or false"),
    ({"optim__lr_projector": 0}, "optim.lr_projector = 0.0: must be above 0"),
    ({"optim__lr_adapter": -1e-3}, "optim.lr_adapter = -0.001: must be above 0"),
    ({"optim__lr_adapter": "1e-3"}, "lr_adapter = '1e-3': must be a finite number"),
    ({"optim__weight_decay": -0.1}, "weight_decay = -0.1: must be at least 0"),
    ({"optim__warmup_ratio": 1}, "warmup_ratio = 1.0: must be from 0 to below 1"),
    ({"optim__clip_norm": 0}, "clip_norm = 0.0: must be above 0"),
    ({"optim__batch_size": 0}, "batch_size = 0: must be at least 1"),
    ({"optim__accumulation": 0}, "accumulation = 0: must be at least 1"),
    ({"optim__epochs": 0}, "epochs = 0: must be at least 1"),
    ({"optim__max_steps": 0}, "max_steps = 0: must be at least 1"),
    ({"optim__max_bad_steps": 0}, "max_bad_steps = 0: must be at least 1"),
    ({"optim__precision": "fp16"}, "precision = 'fp16': must be one of no, bf16"),
    ({"optim__precision": False}, "precision = False: must be one of no, bf16"),
    ({"optim__seed": 2**32}, "seed = 4294967296: must be from 0 to 4294967295"),
    ({"optim__seed": -1}, "seed = -1"),
    ({"retention__variant": "softretention"}, "must be one of .*did you mean 'soft_retention'"),
    ({"retention__weight": 0}, "retention.weight = 0.0: must be above 0"),
    ({"retention__every": 0}, "retention.every = 0: must be at least 1"),
    ({"data__root": ""}, "data.root = '': must not be empty"),
    ({"data__max_caption_tokens": 0}, "max_caption_tokens = 0: must be at least 1"),
    ({"data__min_seconds": -1}, "min_seconds = -1.0: must be at least 0"),
    ({"data__eval_split": "train"}, "eval_split = 'train': must differ from data.train_split"),
    ({"data__test_split": "train"}, "test_split = 'train': must differ from data.train_split"),
    ({"evaluation__batch_size": 0}, "evaluation.batch_size = 0: must be at least 1"),
    ({"evaluation__eval_clips": 1}, "eval_clips = 1: must be at least 2"),
    ({"evaluation__bootstrap": 0}, "bootstrap = 0: must be at least 1"),
    ({"name": "a/b"}, "name = 'a/b': must be letters, digits"),
    ({"name": ""}, "name = ''"),
    ({"optim__lr": 1}, "unknown key in optim 'lr'; known: lr_projector"),
    ({"optim__epoch": 1}, "unknown key in optim 'epoch'; did you mean 'epochs'"),
    ({"modle": {}}, "unknown key in the config 'modle'; did you mean 'model'"),
    ({"optim": {"lr_projector": 1.0}}, "missing key 'optim.lr_adapter', 'optim.batch_size'"),
    ({"model": [1]}, r"model = \[1\]: must be a mapping"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_wrong_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_dict(_with(**changes))


def test_wrong_section_object_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model.fusion = .*must be a mapping \(FusionConfig\)"):
        ModelConfig(
            backbone="x",
            hidden_size=8,
            num_layers=4,
            audio_encoder="y",
            fusion=ProjectorConfig(),  # type: ignore[arg-type]
        )


def test_config_that_is_no_mapping_is_named() -> None:
    with pytest.raises(ConfigError, match="config = 'phase1': must be a mapping"):
        RunConfig.from_dict("phase1")  # type: ignore[arg-type]


def test_min_tokens_matters_only_to_the_adaptive_projector() -> None:
    assert ProjectorConfig(num_tokens=4, min_tokens=8).num_tokens == 4


def test_lossless_conversions_only() -> None:
    fusion = FusionConfig(layers=[1, 2], lora_rank=4, gate_init=0, gate_max=1)  # type: ignore[arg-type]
    assert fusion.layers == (1, 2)
    assert type(fusion.gate_init) is float


def test_alpha_is_the_rank_unless_set() -> None:
    assert FusionConfig(layers=(1,), lora_rank=4, gate_init=0, gate_max=1).alpha == 4.0
    assert FusionConfig(layers=(1,), lora_rank=4, lora_alpha=6, gate_init=0, gate_max=1).alpha == 6


def test_configs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RetentionConfig().weight = 2.0  # type: ignore[misc]


def test_config_error_is_a_value_error_of_the_house() -> None:
    assert issubclass(ConfigError, SafeError)
    assert issubclass(SafeError, ValueError)


def test_every_field_has_a_sentence_under_it(repo_root: Any) -> None:
    source = (repo_root / "configs" / "schema.py").read_text(encoding="utf-8").splitlines()
    names = {key.rpartition(".")[2] for key in dotted_fields()} | {
        f.name for f in fields(RunConfig)
    }
    lines = [
        number
        for number, line in enumerate(source)
        if line.startswith("    ") and line[4:].partition(":")[0] in names
    ]
    assert len(lines) >= len(names)
    assert all(source[number + 1].startswith('    """') for number in lines)


@given(data=st.data())
def test_dict_round_trip(data: st.DataObject, run_configs: st.SearchStrategy[RunConfig]) -> None:
    config = data.draw(run_configs)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_registry_round_trip(name: str) -> None:
    assert RunConfig.from_dict(CONFIGS[name].to_dict()) == CONFIGS[name]
