"""What other tools read: report.json and its schema, JUnit XML, Markdown, and pandas."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import safe_probe
from configs.plain_text import plain
from reports.grade import Grade
from reports.junit import junit, xml_text
from reports.markdown import escape, fenced, markdown
from reports.report import Report
from reports.schema import json_safe, report_schema
from reports.sparkline import sparkline

EVIL = "a|b `c` <img src=x> **d** @octocat [e](http://f) \x1b[31m\x00\u2028 g\nh"


@pytest.fixture
def reports(make_whole_run: Any, run_rows: Any) -> dict[str, Report]:
    nan = run_rows["scores"]()
    nan["scores"]["cider"] = math.nan
    broken = {"score": 12, "shuffled": 12, "gate": 0.0, "contribution": 0.0, "swapped": 0.0}
    evil = {"train_seconds": math.inf, "note": EVIL}
    return {
        "healthy": Report.of(make_whole_run("healthy")),
        "broken": Report.of(make_whole_run("broken", **broken)),
        "nan": Report.of(make_whole_run("nan", evaluation=nan, resources=evil)),
        "empty": Report.of(
            make_whole_run("empty", metrics=None, records=None, evaluation=None, captions=None)
        ),
    }


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(report_schema())


def test_every_report_is_as_the_schema_says(reports: dict[str, Report]) -> None:
    validator = jsonschema.Draft202012Validator(report_schema())
    for report in reports.values():
        text = json.dumps(report.to_json(), allow_nan=False)
        validator.validate(json.loads(text))
    scores = {c["name"]: c["value"] for c in reports["nan"].to_json()["criteria"]}
    assert scores["final_cider"] == "NaN" and scores["cider_epoch_10"] is None


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("version",), 2),
        (("verdict", "decision"), "MAYBE"),
        (("criteria", 0, "value"), "not a number"),
        (("criteria", 0, "grade"), "ERROR"),
        (("findings", 0, "code"), "X1"),
        (("chain", 0, "health"), "fine"),
        (("verdict", "next", "command"), ""),
    ],
)
def test_the_schema_refuses(
    where: tuple[Any, ...], value: Any, reports: dict[str, Report]
) -> None:  # fmt: skip
    wrong = copy.deepcopy(reports["broken"].to_json())
    place = wrong
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(report_schema()).validate(wrong)


def test_schema_knows_every_field(reports: dict[str, Report]) -> None:
    """No field is printed that the schema does not describe."""
    schema, value = report_schema(), reports["broken"].to_json()
    for section, name in (
        ("criteria", "criterion"), ("findings", "finding"), ("chain", "link"),
        ("claims", "claim"), ("checklist", "item"),
    ):  # fmt: skip
        assert set(value[section][0]) == set(schema["$defs"][name]["properties"]), section
    for name in ("run", "verdict"):
        assert set(value[name]) == set(schema["$defs"][name]["properties"])
    assert set(value) == set(schema["properties"])


def test_junit_counts_what_it_shows(reports: dict[str, Report]) -> None:
    for report in reports.values():
        suite = ElementTree.fromstring(junit(report))
        for tag, attribute, grade in (
            ("failure", "failures", Grade.FAIL), ("skipped", "skipped", Grade.UNKNOWN),
        ):  # fmt: skip
            expected = sum(o.grade is grade for o in report.outcomes)
            assert len(suite.findall(f"testcase/{tag}")) == int(suite.attrib[attribute]) == expected
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase")) == len(report.outcomes)
    suite = ElementTree.fromstring(junit(reports["broken"]))
    told = suite.findtext("system-out") or ""
    assert "SP211 gate @ layer 2" in told and "BLOCKED" in told
    skipped = ElementTree.fromstring(junit(reports["empty"])).find("testcase/skipped")
    assert skipped is not None and "run: safe-train evaluate" in skipped.attrib["message"]


@given(st.text(st.characters(codec=None)))
def test_any_text_survives_xml(text: str) -> None:
    element = ElementTree.Element("a", message=xml_text(text))
    element.text = xml_text(text)
    back = ElementTree.fromstring(ElementTree.tostring(element, encoding="utf-8"))
    assert (back.text or "").replace("\r", "\n") == re.sub("\r\n?", "\n", xml_text(text))
    assert set(xml_text(text)) <= set(text)


def test_markdown_is_tables(reports: dict[str, Report]) -> None:
    text = markdown(reports["broken"])
    assert text.startswith("## ✘ BLOCKED: broken\n") and "```sh\nsafe-train demo" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 30
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert widths == {3, 5, 7}
    assert "| SP211 | error | gate @ layers 2, 4, 6, 8 |" in text


def test_markdown_takes_foreign_text_as_text(make_whole_run: Any) -> None:
    folder: Path = make_whole_run("run")
    moved = folder.rename(folder.with_name("a|b `c` <b> @octocat"))
    head = markdown(Report.of(moved)).splitlines()[0]
    assert head.endswith("a\\|b \\`c\\` \\<b\\> @\u200boctocat")


def test_escaping() -> None:
    text = escape(EVIL)
    assert "\n" not in text and "\x1b" not in text and "@octocat" not in text
    assert not re.search(r"(?<!\\)[|`<>*\[\]]", text)
    assert fenced("echo ```` x").startswith("`````sh\n")


@given(st.text(st.characters(codec=None)))
def test_plain_text_has_nothing_that_steers_a_terminal(text: str) -> None:
    shown = plain(text)
    assert all(c.isprintable() or c.isspace() for c in shown)
    assert not set(shown) & set("\n\r\t\x1b\x9b\u202e\u2066")
    shown.encode("utf-8")
    if "\\" not in text:  # nothing is lost
        escaped = r"\\(?:[nrt]|x..|u....|U........)"
        assert re.sub(escaped, lambda e: e[0].encode().decode("unicode_escape"), shown) == text


@given(st.lists(st.floats(), max_size=60), st.integers(1, 30))
def test_sparkline(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set("▁▂▃▄▅▆▇█!")


def test_sparkline_rises_with_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0]) == "▅▅"
    assert sparkline([1, math.nan, 3]) == "▁!█"


def test_json_safe_goes_down() -> None:
    value = {"a": [math.nan, (1, -math.inf)], 2: "x", "b": None}
    assert json_safe(value) == {"a": ["NaN", [1, "-Infinity"]], "2": "x", "b": None}


def test_a_run_as_tables(make_whole_run: Callable[..., Path]) -> None:
    run = safe_probe.read_run(make_whole_run("run"))
    steps, records = run.frame(), run.log.frame()
    assert list(steps["step"]) == list(range(1, 31)) and steps["loss"].iloc[-1] == 2.0
    assert {"gate/2", "grad_norm/total"} <= set(steps.columns)
    assert set(records["probe"]) >= {"magnitude", "gates", "scores"}
    assert safe_probe.Report.of(run).verdict.decision.name == "PROCEED"
