"""`--set` and YAML files: round trips, types by field, and every refusal by its message."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.model_configs import CONFIGS, get_config
from configs.overrides import (
    apply_overrides,
    apply_values,
    dotted_fields,
    load_yaml,
    parse_assignments,
    resolve,
)
from configs.schema import RunConfig
from configs.yaml_text import dump_yaml

PHASE1 = get_config("phase1")


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("optim.lr_projector=2e-4", 2e-4),
        ("optim.lr_projector=1", 1.0),
        ("optim.epochs=3", 3),
        ("optim.max_steps=null", None),
        ("optim.max_steps=None", None),
        ("optim.precision=no", "no"),
        ("model.fusion.layers=[6, 12]", (6, 12)),
        ("model.fusion.layers=6,12", (6, 12)),
        ("model.gradient_checkpointing=True", True),
        ("model.quantization=4bit", "4bit"),
        ("model.quantization=~", None),
        ("model.projector.bottleneck_dim=none", None),
        ("model.projector.bottleneck_dim=4096", 4096),
        ("model.prompt=USER: <image>\nhear = this # now", "USER: <image>\nhear = this # now"),
        ("model.prompt=12", "12"),
        ("model.prompt=", ""),
        (" data.root = synthetic ", "synthetic"),
    ],
)
def test_assignment(assignment: str, expected: Any) -> None:
    changed = apply_overrides(PHASE1, [assignment])
    value = _value(changed, assignment.partition("=")[0].strip())
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.epochs", "--set 'optim.epochs': must be key=value"),
        ("optim.epochs=three", "optim.epochs = 'three': must be an integer"),
        ("optim.epochs=3.5", "optim.epochs = '3.5': must be an integer"),
        ("optim.epochs=null", "optim.epochs = 'null': must be an integer"),
        ("optim.lr_adapter=nan", "optim.lr_adapter = nan: must be a finite number"),
        ("optim.lr_adapter=true", "optim.lr_adapter = 'true': must be a finite number"),
        ("optim.max_steps=x", "optim.max_steps = 'x': must be an integer or null"),
        ("model.gradient_checkpointing=1", "= '1': must be true or false"),
        ("model.fusion.layers=[a]", r"layers = \['a'\]: must be a list of integers"),
        ("model.fusion.layers=[]", r"layers = \[\]: must be one or more"),
        ("retention.variant=soft", "variant = 'soft': must be one of no_retention"),
        ("lr_projector=1", "unknown key 'lr_projector'; did you mean 'optim.lr_projector'"),
        (
            "batch_size=1",
            "unknown key 'batch_size'; did you mean 'optim.batch_size' or 'evaluation.batch_size'",
        ),
        ("optim.lr_projecter=1", "'optim.lr_projecter'; did you mean 'optim.lr_projector'"),
        ("xyz=1", "^unknown key 'xyz'$"),
        ("retention=1", "retention is a section; set one of retention.variant, "),
        ("optim.accumulation=0", "optim.accumulation = 0: must be at least 1"),
    ],
)
def test_refused_assignment(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(PHASE1, [assignment])


def test_values_that_only_fit_together() -> None:
    changed = apply_overrides(PHASE1, ["model.fusion.gate_init=2", "model.fusion.gate_max=3"])
    assert changed.model.fusion.gate_init == 2.0


def test_original_is_untouched() -> None:
    before = PHASE1.to_dict()
    apply_overrides(PHASE1, ["optim.epochs=1", "model.fusion.layers=[1]"])
    assert PHASE1.to_dict() == before


def test_unknown_value_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'optim.epoch'"):
        apply_values(PHASE1, {"optim.epoch": 1})


@given(data=st.data())
def test_override_round_trip(data: st.DataObject, run_configs: Any) -> None:
    """Setting every field of one config on another gives the first one."""
    target: RunConfig = data.draw(run_configs)
    assignments, texts = [], {}
    for key, hint in dotted_fields().items():
        value = _value(target, key)
        if isinstance(value, str) and hint in (str, str | None):
            texts[key] = value  # a text's outer blanks and the word "none" need the YAML file
        else:
            text = "null" if value is None else repr(value).replace("(", "[").replace(",)", "]")
            text = value if isinstance(value, str) else text.replace(")", "]")
            assignments.append(f"{key}={text}")
    assert apply_values(PHASE1, parse_assignments(assignments) | texts) == target


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_yaml_round_trip(data: st.DataObject, run_configs: Any, tmp_path: Path) -> None:
    config: RunConfig = data.draw(run_configs)
    restored, explicit = resolve(None, _write(tmp_path, dump_yaml(config)))
    assert restored == config
    assert explicit == set(dotted_fields())


@pytest.mark.parametrize("name", CONFIGS)
def test_yaml_of_the_registry(name: str, tmp_path: Path) -> None:
    assert resolve(None, _write(tmp_path, dump_yaml(CONFIGS[name])))[0] == CONFIGS[name]


def test_file_on_a_base_then_assignments(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "base: phase1\noptim: {epochs: 3, lr_adapter: 1e-4, precision: no}\n"
        "model:\n  fusion: {layers: [1, 2]}\n",
    )
    config, explicit = resolve(None, path, ["optim.epochs=4"])
    assert (config.optim.epochs, config.optim.lr_adapter) == (4, 1e-4)
    assert (config.optim.precision, config.model.fusion.layers) == ("no", (1, 2))
    assert config.model.projector == PHASE1.model.projector
    assert explicit == {
        "optim.epochs",
        "optim.lr_adapter",
        "optim.precision",
        "model.fusion.layers",
    }


def test_name_alone() -> None:
    assert resolve("phase1") == (PHASE1, frozenset())


def test_name_and_base_that_agree(tmp_path: Path) -> None:
    assert resolve("phase1", _write(tmp_path, "base: phase1"))[0] == PHASE1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: full", "base = 'full' in .*run.yaml: contradicts the config 'phase1'"),
        ("base: [1]", r"base = \['1'\]: must be the name of a config"),
        ("optim: {epoch: 3}", "unknown key 'optim.epoch'; did you mean 'optim.epochs'"),
        ("optim: 3", "optim is a section; set one of optim.lr_projector"),
        ("optim: {epochs: many}", "optim.epochs = 'many': must be an integer"),
        ("optim: {epochs: null}", "optim.epochs = None: must be an integer"),
        ("optim: {epochs: {a: 1}}", "optim.epochs = {'a': '1'}: must be an integer"),
        ("model: {fusion: {layers: [x]}}", r"layers = \['x'\]: must be a list of integers"),
        ("- 1", "run.yaml must hold a mapping"),
        ("", "run.yaml must hold a mapping"),
        ("a: [", "cannot read the YAML file .*run.yaml"),
        ("? [a]\n: 1", "cannot read the YAML file"),
        ("optim: {epochs: 1}\noptim: {seed: 2}", "key optim stands twice"),
        ("optim:\n  epochs: 1\n  epochs: 2", "key epochs stands twice"),
    ],
)
def test_refused_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("phase1", _write(tmp_path, text))


def test_refused_file_without_a_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing key 'name', 'description', 'model'"):
        resolve(None, _write(tmp_path, "optim: {epochs: 3}"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the YAML file .*absent.yaml"):
        load_yaml(tmp_path / "absent.yaml")


def test_binary_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot read the YAML file"):
        load_yaml(path)


def test_neither_name_nor_file() -> None:
    with pytest.raises(ConfigError, match="no config given"):
        resolve(None)
