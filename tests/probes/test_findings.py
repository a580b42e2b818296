"""Settings, the root cause, the pages, and how findings are shown."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from configs.errors import ConfigError
from probes.findings import CATALOGUE, FAMILIES, Settings, Severity, Verdict, get_rule, judge
from probes.findings.pages import explain, pages
from probes.findings.view import as_html, grouped, render
from probes.record import Record


def rec(probe: str, component: str, statistic: str, value: float, layer: int | None = None,
        step: int = 0) -> Record:  # fmt: skip
    return Record(step, probe, component, layer, statistic, value, "u")


CLOSED = [
    rec("parameters", "model", "trainable", 9),
    rec("parameters", "gate", "total", 1),
    rec("gates", "gate", "trainable", 0, 4),
    rec("gates", "gate", "value", 0.0, 4),
]
SILENT = [rec("influence", "signal:swapped", "changed", 0.0, step=500)]


def test_codes_belong_to_their_family() -> None:
    for family in FAMILIES:
        assert family.rules
        assert all(r.code.startswith(family.prefix) and len(r.code) == 5 for r in family.rules)
    assert len(CATALOGUE) == sum(len(f.rules) for f in FAMILIES) >= 35


def test_no_torch_is_needed() -> None:
    code = "import sys, probes.findings, probes.scores; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_first_broken_link_is_the_root_and_the_rest_its_consequences() -> None:
    found = judge([*SILENT, *CLOSED])
    assert [(f.code, f.consequence_of) for f in found] == [("SP203", None), ("SP406", "SP203")]
    verdict = Verdict.of(found)
    assert verdict.root is found[0]
    assert str(verdict) == "broken at gate @ layer 4: The gate is frozen (SP203)"


def test_a_note_about_a_score_is_a_consequence_too() -> None:
    better = [
        rec("scores", "score", "cider", 10.0),
        rec("scores", "score", "nearest_neighbour", 60),
    ]
    found = {f.code: f.consequence_of for f in judge([*CLOSED, *better])}
    assert found["SP706"] == "SP203" and judge(better)[0].consequence_of is None


def test_a_wrong_setting_is_never_a_consequence() -> None:
    found = judge([*CLOSED, rec("parameters", "optimizer", "duplicates", 2)])
    assert {f.code: f.consequence_of for f in found} == {"SP203": None, "SP310": None}


def test_a_warning_before_an_error_is_not_the_root() -> None:
    found = judge([rec("data", "text", "ends_with_eos", 0.0), *CLOSED])
    assert found[0].code == "SP203"
    assert found[1].code == "SP604" and found[1].consequence_of is None


def test_a_warning_that_explains_the_error_is_the_root() -> None:
    stuck = [
        rec("gradflow", "model", "optimizer_given", 1),
        rec("gradflow", "gate", "moved_share", 0, 4),
        rec("gradflow", "gate", "state", 3, 4),
    ]
    half = [rec("parameters", "gate", name, 1) for name in ("total", "trainable", "dtype.bfloat16")]
    assert [f.code for f in judge(stuck)] == ["SP313"]
    found = judge([*stuck, *half])
    assert [(f.code, f.consequence_of) for f in found] == [("SP508", None), ("SP313", "SP508")]
    assert Verdict.of(found).severity is Severity.ERROR and Verdict.of(found).root is found[0]


def test_explained_codes_exist_and_come_later_in_the_chain() -> None:
    for rule in CATALOGUE.values():
        for code in rule.explains:
            assert CATALOGUE[code].symptom and CATALOGUE[code].link >= rule.link


def test_notes_alone_break_nothing() -> None:
    found = judge([rec("magnitude", "text", "sink_inflation", 15, 12)])
    assert [f.severity for f in found] == [Severity.NOTE]
    assert str(Verdict.of(found)) == "no broken link found"
    assert not Settings().fails(found)


def test_the_newest_record_counts() -> None:
    old = rec("magnitude", "fusion", "calls", 0, 4)
    new = rec("magnitude", "fusion", "calls", 1, 4, step=5)
    assert judge([old, new]) == []


def test_select_ignore_and_severity() -> None:
    records = [*SILENT, *CLOSED]
    assert [f.code for f in judge(records, Settings(select=("SP4",)))] == ["SP406"]
    assert [f.code for f in judge(records, Settings(ignore=("SP203",)))] == ["SP406"]
    milder = Settings.from_dict({"severity": {"SP203": "note", "SP406": "warning"}})
    found = judge(records, milder)
    assert {f.code: f.severity for f in found} == {
        "SP203": Severity.NOTE, "SP406": Severity.WARNING
    }  # fmt: skip
    assert not milder.fails(found)
    assert Settings(fail_on=Severity.WARNING).fails(found)
    assert not Settings(fail_on=None).fails(found)


def test_thresholds_can_be_changed() -> None:
    records = [rec("magnitude", "fusion", "contribution_median", 1.5, 4)]
    assert [f.code for f in judge(records)] == ["SP105"]
    assert judge(records, Settings.from_dict({"thresholds": {"loud": 2}})) == []


def test_settings_from_pyproject_and_yaml(tmp_path: Path) -> None:
    toml = tmp_path / "pyproject.toml"
    toml.write_text('[tool.safe-probe]\nignore = ["sp113"]\nfail-on = "warning"\n')
    assert Settings.read(toml).ignore == ("SP113",)
    (tmp_path / "deep").mkdir()
    assert Settings.find(tmp_path / "deep").fail_on is Severity.WARNING
    yaml = tmp_path / "probe.yaml"
    yaml.write_text("select: SP1, SP205\nfail-on: never\n")
    assert Settings.read(yaml).select == ("SP1", "SP205")
    assert Settings.read(yaml).fail_on is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"igonre": []}, "unknown key in the safe-probe settings 'igonre'; did you mean 'ignore'?"),
        ({"ignore": ["SP999"]}, "ignore: unknown finding 'SP999'"),
        ({"ignore": 3}, "ignore = 3: must be a list of codes"),
        ({"severity": {"SP205": "fatal"}}, "unknown severity of SP205 'fatal'"),
        ({"severity": {"XY": "error"}}, "severity: unknown finding 'XY'"),
        ({"severity": 1}, "severity = 1: must be a mapping"),
        ({"fail-on": "eror"}, "unknown value of fail-on 'eror'; did you mean 'error'?"),
        ({"thresholds": {"lout": 1}}, "unknown threshold 'lout'; did you mean 'loud'?"),
        ({"thresholds": {"loud": "x"}}, "threshold loud = 'x': must be a finite number"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        Settings.from_dict(values)


@pytest.mark.parametrize("text", ["[1", "- a\n- b\n"])
def test_a_damaged_settings_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "probe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"probe\.yaml"):
        Settings.read(file)


def test_explain_says_everything() -> None:
    text = explain(get_rule("sp204"))
    for part in ("SP204", "What is measured", "Why it matters", "Expected", "Remedy"):
        assert part in text
    with pytest.raises(ConfigError, match="unknown finding 'SP2O4'; did you mean 'SP204'"):
        get_rule("SP2O4")


def test_docs_are_complete_and_current(repo_root: Path) -> None:
    folder = repo_root / "docs" / "findings"
    found = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.md")}
    assert found == pages(), "run `python scripts/build_findings_docs.py`"
    for code in CATALOGUE:
        assert f"[{code}]({code}.md)" in found["README.md"]


def test_equal_findings_of_several_layers_are_shown_together() -> None:
    records = [rec("magnitude", "fusion", "calls", 2, layer) for layer in (4, 8)]
    found = judge(records)
    assert [len(group) for group in grouped(found)] == [2]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(render(found, {"influence": "no [bold]labels[/bold]"}))
    text = console.export_text()
    assert "fusion @ layers 4, 8" in text
    assert "not measured: influence: no [bold]labels[/bold]" in text


def test_html_is_escaped() -> None:
    found = judge([rec("gates", "gate", "weight_decay", 0.1, 4)])
    page = as_html(found, {"data": "<script>alert(1)</script>"})
    assert "<script>" not in page and "&lt;script&gt;" in page
