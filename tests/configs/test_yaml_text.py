import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError, SafeError, shorten, shown
from configs.model_configs import CONFIGS
from configs.overrides import resolve
from configs.yaml_text import _TextLoader, dump_yaml, read_yaml
from probes.findings.settings import Settings
from probes.signal_path import SignalPath

READERS: dict[str, Callable[[Path], object]] = {
    "a configuration": lambda path: resolve("phase1", path),
    "a signal path": SignalPath.from_yaml,
    "settings": Settings.read,
}
BOMB = "&a0 [lol, lol]" + "".join(f", &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 12))
MERGES = "a0: &a0 {k: v}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 10)
)


@pytest.fixture(params=READERS, ids=lambda name: name.split()[-1])
def read(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return READERS[request.param]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a: [{BOMB}]", r"aliases \(\*name\) are not read"),
        (MERGES, r"aliases \(\*name\) are not read"),
        ("[" * 3000, "nested more than 50 deep"),
        ("- " * 3000, "nested more than 50 deep"),
        ("a: 1\n" * 20_000, "larger than 65,536 bytes"),
        ("a: [", "expected the node content"),
        ("a: !!bool x", "x"),
        ("a: !!python/object/apply:os.abort []", "python/object/apply"),
    ],
)
def test_what_no_reader_takes(
    text: str, message: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(SafeError, match=f"cannot read the YAML file .*a.yaml: .*{message}") as info:
        read(path)
    assert len(str(info.value)) < 1000


@pytest.mark.parametrize("text", ["a: 2024-13-45", f"a: {'1:' * 300}1.5", f"a: 0x{'f' * 9999}"])
def test_values_that_python_cannot_hold(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="cannot read the YAML file"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text",
    [
        f"optim: {{seed: [{'lol, ' * 5000}]}}",
        f"knobs: [{'[a], ' * 5000}]\nprojector: a\nlayers: b.*",
        f"select: [{'1, ' * 5000}]",
        f"{'x' * 50_000}: 1",
    ],
)
def test_messages_are_short(text: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SafeError) as info:
        read(tmp_path / "a.yaml")
    assert len(str(info.value)) < 1000


def test_repeated_keys_take_no_square_of_time() -> None:
    def scalar(value: str) -> yaml.ScalarNode:
        return yaml.ScalarNode("tag:yaml.org,2002:str", value)

    pairs = [(scalar(f"k{i}"), scalar("1")) for i in range(20_000)]
    loader, start = _TextLoader(""), time.process_time()
    made = loader.construct_mapping(yaml.MappingNode("tag:yaml.org,2002:map", pairs))
    assert len(made) == len(pairs)
    with pytest.raises(yaml.YAMLError, match=r"key k0, k1, k10, .* stands twice") as info:
        loader.construct_mapping(yaml.MappingNode("tag:yaml.org,2002:map", pairs * 2))
    assert len(str(info.value)) < 1000
    assert time.process_time() - start < 3  # 20 s by looking for each key among all


@pytest.mark.parametrize(
    "text", ["severity: {1: error}", "severity: {SP208: [a]}", "fail-on: [a]", "fail-on: {}"]
)
def test_settings_of_another_type(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="a.yaml: .*unknown"):
        Settings.read(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", CONFIGS)
def test_our_own_need_no_alias(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    (tmp_path / "a.yaml").write_text(dump_yaml(config))
    assert resolve(None, tmp_path / "a.yaml")[0] == config


def test_shown() -> None:
    assert shown("a") == "'a'" and shown([1, {"b": None}]) == "[1, {'b': None}]"
    assert len(shown([["x" * 1000] * 1000] * 1000)) == 300
    assert "too many digits" in shown([16**9999])
    assert shorten("x" * 300) == "x" * 300 and len(shorten("x" * 301)) == 300
