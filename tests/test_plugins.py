"""Packages that add what clashes, fails or is something else: errors that name them."""

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest
import torch

from configs.errors import DataError, ModelError, PluginError, SafeError
from probes import get_probe
from probes.diagnosis import diagnose
from probes.errors import ProbeError
from probes.findings.catalogue import all_families, get_rule
from probes.findings.judge import judge
from probes.findings.settings import Settings
from probes.record import Record
from safe.data.sources import read_source
from safe.models.audio_encoders import load_audio_encoder
from safe.models.backbones import load_backbone
from safe_probe import cli as probe_cli
from tests.packages import Files, Install, install, kinds_of_sounds, small_model

pytestmark = pytest.mark.usefixtures("in_small_world")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kinds_of_sounds(tmp_path_factory.mktemp("data") / "kinds")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """package(group, entries, files) installs one more; its modules are forgotten afterwards."""
    before = set(sys.modules)
    count = 0

    def make(group: str, entries: Mapping[str, str], files: Files | None = None) -> Path:
        nonlocal count
        count += 1
        place = tmp_path / f"site{count}"
        place.mkdir()
        install(place, f"other-{count}", files or {}, {f"safe_probe.{group}": entries})
        monkeypatch.syspath_prepend(str(place))
        return place

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("other_"):
            del sys.modules[name]


def test_a_name_that_is_built_in(package: Install) -> None:
    package("backbones", {"embedded": "other_x:folder"})
    with pytest.raises(
        PluginError, match="package other-1 1.0 adds the backbone 'embedded', which is built in"
    ):
        load_backbone("embedded")
    package("probes", {"gates": "other_x:measure"})
    with pytest.raises(PluginError, match="package other-2 1.0 adds the probe 'gates', which is"):
        diagnose(torch.nn.Linear(1, 1))


def test_a_name_that_two_packages_add(package: Install) -> None:
    package("audio_encoders", {"ear": "other_x:Ear"})
    package("audio_encoders", {"ear": "other_y:Ear"})
    with pytest.raises(
        PluginError, match="packages other-. 1.0 and other-. 1.0 both add the audio"
    ):
        load_audio_encoder("ear")


BROKEN = "raise OSError('no licence')"
WRONG = "thing = 3\ndef make(*_): return 3\ndef fail(*_): return 1 / 0\n"


@pytest.mark.parametrize(
    ("group", "what", "use"),
    [
        ("backbones", "backbone", lambda: load_backbone("new")),
        ("audio_encoders", "audio encoder", lambda: load_audio_encoder("new:here")),
        ("probes", "probe", lambda: get_probe("new")),
        ("findings", "family of findings", lambda: get_rule("NEW101")),
        ("findings", "family of findings", lambda: Settings(select=("NEW",))),
    ],
)
def test_a_package_that_cannot_be_imported(
    package: Install, group: str, what: str, use: Callable[[], object]
) -> None:
    package(group, {"new": "other_broken:thing"}, {"other_broken.py": BROKEN})
    with pytest.raises(
        PluginError,
        match=rf"the {what} 'new' of package other-1 1.0 cannot be used \(OSError: no licence\); "
        "repair that package or uninstall it",
    ):
        use()
    get_rule("SP204")  # what is built in does not ask it
    Settings(select=("SP1",))


def test_a_data_set_format_that_breaks(package: Install, sounds: Path, tiny_data: Path) -> None:
    package("datasets", {"new": "other_broken:thing"}, {"other_broken.py": BROKEN})
    with pytest.raises(
        PluginError, match="the data set format 'new' of package other-1 1.0 cannot"
    ):
        read_source(sounds)
    assert read_source(tiny_data).format == "AudioCaps layout"  # does not ask it


FORMAT = """
from safe.data.sources.source import Format
taken = Format("AudioCaps layout", "", lambda root: [], lambda root, files: None)
fails = Format("New", "a thing", lambda root: [root], lambda root, files: 1 / 0)
never = Format("New", "a file NEW", lambda root: [], lambda root, files: None)
"""


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("taken", PluginError, "its name 'AudioCaps layout' is a built-in format's"),
        ("fails", PluginError, "other-1 1.0 cannot be used .ZeroDivisionError"),
        ("never", DataError, r"no manifest in .*\(6\) New: a file NEW"),
    ],
)
def test_data_set_formats_that_do_not_do(
    package: Install, sounds: Path, name: str, error: type[SafeError], message: str
) -> None:
    package("datasets", {"new": f"other_format:{name}"}, {"other_format.py": FORMAT})
    with pytest.raises(error, match=message):
        read_source(sounds)


@pytest.mark.parametrize(
    ("group", "name", "use", "message"),
    [
        ("backbones", "thing", lambda: load_backbone("new"), "'int' object is not callable"),
        ("backbones", "fail", lambda: load_backbone("new"), "ZeroDivisionError"),
        ("backbones", "make", lambda: load_backbone("new"), "TypeError"),
        ("audio_encoders", "make", lambda: load_audio_encoder("new"), "a int is no FrozenEncoder"),
        ("audio_encoders", "fail", lambda: load_audio_encoder("new"), "ZeroDivisionError"),
        ("datasets", "thing", lambda: read_source(Path(__file__).parent), "a int is no Format"),
        ("findings", "thing", all_families, "a int is no Family"),
    ],
)
def test_a_package_that_adds_something_else(
    package: Install, group: str, name: str, use: Callable[[], object], message: str
) -> None:
    package(group, {"new": f"other_wrong:{name}"}, {"other_wrong.py": WRONG})
    with pytest.raises(PluginError, match=rf"'new' of package other-1 1.0 cannot be .*{message}"):
        use()


def test_a_backbone_that_is_no_model_folder(package: Install, tmp_path: Path) -> None:
    code = f"def folder(): return {str(tmp_path)!r}\n"
    package("backbones", {"new": "other_folder:folder"}, {"other_folder.py": code})
    with pytest.raises(PluginError, match="'new' of package other-1 1.0 .* has no config.json"):
        load_backbone("new")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"new: no \*.safetensors in"):
        load_backbone("new")


MODEL = """
from pathlib import Path
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
)

class OtherConfig(LlamaConfig):
    model_type = "other_model"

class OtherModel(LlamaModel):
    config_class = OtherConfig

class OtherForCausalLM(LlamaForCausalLM):
    config_class = OtherConfig

AutoConfig.register("other_model", OtherConfig)
AutoModelForCausalLM.register(OtherConfig, OtherForCausalLM)
if {whole}:
    AutoModel.register(OtherConfig, OtherModel)

def folder():
    return Path({place!r})
"""


@pytest.mark.parametrize("whole", [True, False])
def test_a_backbone_with_a_model_class_of_its_own(
    package: Install, tmp_path: Path, whole: bool
) -> None:
    place, module = tmp_path / "model", f"other_model_{whole}".lower()
    code = MODEL.format(place=str(place), whole=whole).replace("other_model", module)
    package("backbones", {"new": f"{module}:folder"}, {f"{module}.py": code})
    other = import_module(module)
    config = other.OtherConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    other.OtherForCausalLM(config).save_pretrained(place)
    load_backbone("embedded").tokenizer.save_pretrained(place)
    if whole:
        decoder = load_backbone("new", dtype="float32").model.get_decoder()
        assert isinstance(decoder.config, other.OtherConfig)
    else:
        with pytest.raises(
            ModelError, match=r"OtherForCausalLM .* AutoModel.register\(OtherConfig"
        ):
            load_backbone("new", dtype="float32")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def measure(context): return 1 / 0\n", "ZeroDivisionError"),
        ("def measure(context): return [3]\n", "must return records of context.rows"),
        ("def measure(context):\n    rows = context.rows('gates')\n    rows.add('a', 'b', 1, 'c')\n"
         "    return rows.records\n", "must return records of context.rows"),
    ],
)  # fmt: skip
def test_a_probe_that_fails_is_not_measured(package: Install, code: str, message: str) -> None:
    package("probes", {"new": "other_probe:measure"}, {"other_probe.py": code})
    model, batch = small_model()
    found = diagnose(model, [batch], probes=["parameters", "new"])
    assert list(found.not_measured) == ["new"] and message in found.not_measured["new"]
    assert "the probe 'new' of package other-1 1.0" in found.not_measured["new"]
    with pytest.raises(ProbeError, match="unknown probe 'newer'.* did you mean 'new'"):
        get_probe("newer")


RULES = """
from probes.findings.finding import Link, Severity
from probes.findings.rule import Family
FAMILY = Family({prefix!r}, "New", "")
words = dict(what={what!r}, why="", expected="", source="", remedy="")
for code in {codes!r}:
    FAMILY.rule(code, "new", Link.GATE, Severity.ERROR, **words)(lambda facts, limits: {check})
"""


def rules(*codes: str, prefix: str = "NEW", what: str = "", check: str = "iter(())") -> str:
    return RULES.format(codes=codes, prefix=prefix, what=what, check=check)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (rules("SP101", prefix="SP"), "code 'SP101' must be its prefix 'SP' and digits, three"),
        (rules("SPA101", prefix="SPA"), "must not begin with SP"),
        (rules("OLD101"), "code 'OLD101' must be its prefix 'NEW'"),
        (rules("NEW1"), "code 'NEW1' must be its prefix 'NEW' and digits, three in all"),
        (rules("NEW101", what="above {nothing:g}"), "NEW101 names an unknown threshold 'nothing'"),
        (rules("NEW101", "NEW101"), "NEW101 is a code of 'new' too"),
    ],
)
def test_codes_that_are_not_its_own(package: Install, code: str, message: str) -> None:
    package("findings", {"new": "other_rules:FAMILY"}, {"other_rules.py": code})
    with pytest.raises(PluginError, match=f"package other-1 1.0 cannot be used .*{message}"):
        all_families()
    with pytest.raises(PluginError, match=message):
        judge([])


def test_a_rule_that_fails_names_its_package(package: Install) -> None:
    code = rules("NEW101", check="1 / 0")
    package("findings", {"new": "other_rules:FAMILY"}, {"other_rules.py": code})
    with pytest.raises(PluginError, match=r"package other-1 1.0 .*\(NEW101: ZeroDivisionError"):
        judge([Record(0, "gates", "gate", 1, "effective", 0.3, "factor")])


def test_commands_say_it_in_one_line(package: Install, capsys: pytest.CaptureFixture[str]) -> None:
    package("findings", {"new": "other_broken:thing"}, {"other_broken.py": BROKEN})
    assert probe_cli.main(["list"]) == 2
    assert capsys.readouterr().err.startswith(
        "PluginError: the family of findings 'new' of package"
    )
