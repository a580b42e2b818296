"""The page as text: valid, alike every time, of bounded size, and its texts stay text."""

import base64
import hashlib
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import html5lib
import pytest

from configs.claims import VERIFIED_ABOVE
from configs.plain_text import plain
from probes.findings.finding import Finding, Link, Severity
from reports import html, page
from reports.errors import ReportError
from reports.html import render, render_comparison, write
from reports.report import Report
from reports.verdict import Decision
from tests.hostile import HOSTILE, MARKUP
from tests.reports.spoiled import spoiled

Factory = Callable[..., Path]
Rows = dict[str, Callable[..., Any]]


def parsed(text: str) -> ET.Element:
    """The document; raises at the first error of its HTML."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(text)


def words(text: str) -> str:
    """All text of a page on one line."""
    return " ".join(" ".join(parsed(text).itertext()).split())


def local(element: ET.Element) -> str:
    return str(element.tag).rpartition("}")[2]


@pytest.fixture
def whole(make_whole_run: Factory) -> Report:
    return Report.of(make_whole_run())


def test_valid_and_self_contained(whole: Report) -> None:
    document = parsed(render(whole))
    elements = list(document.iter())
    ids = [e.get("id") for e in elements if e.get("id")]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    assert {local(e) for e in elements}.isdisjoint(
        {"script", "iframe", "object", "embed", "form", "img", "base", "foreignObject", "animate"}
    )
    for element in elements:
        for name, value in element.attrib.items():
            plain_name = str(name).rpartition("}")[2]
            assert plain_name != "style", ET.tostring(element)[:200]
            assert not plain_name.startswith("on"), ET.tostring(element)[:200]
            if plain_name in ("href", "src"):
                assert value.startswith(("#", "data:")), value
                assert not value.startswith("#") or value[1:] in ids, value
            for target in re.findall(r"url\(#(.+?)\)", str(value)):
                assert target in ids
            if plain_name in ("aria-labelledby", "for"):
                assert set(str(value).split()) <= set(ids), value


def test_policy_allows_this_style_sheet_and_nothing_else(whole: Report) -> None:
    document = parsed(render(whole))
    style = document.find(".//style")
    policy = next(m.get("content") for m in document.iter("meta") if m.get("http-equiv"))
    assert style is not None and style.text and policy
    digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "@import" not in style.text
    assert "url(" not in style.text


def test_every_picture_has_a_text_and_a_table(whole: Report) -> None:
    figures = list(parsed(render(whole)).iter("figure"))
    assert [f.get("id") for f in figures] == [
        "magnitude", "contribution", "gates", "heat", "components", "loss", "cider", "controls",
        "influence",
    ]  # fmt: skip
    for figure in figures:
        svg = next(e for e in figure.iter() if local(e) == "svg")
        title, about = (next(e for e in svg if local(e) == name) for name in ("title", "desc"))
        assert svg.get("role") == "img"
        assert svg.get("aria-labelledby") == f"{title.get('id')} {about.get('id')}"
        assert title.text and about.text and any(c.isdigit() for c in about.text)
        assert len(list(figure.iter("tr"))) > 1


def test_same_run_same_bytes(make_whole_run: Factory, tmp_path: Path) -> None:
    folder = make_whole_run()
    first, second = (write(Report.of(folder), tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures out where they are not what is looked at: they take most of the time."""
    monkeypatch.setattr(page, "plot_sections", lambda _: ())


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("decision", Decision)
def test_mark_of_the_verdict(whole: Report, decision: Decision) -> None:
    """Decision and Severity are equal numbers: the one's mark must not be the other's."""
    report = replace(whole, verdict=replace(whole.verdict, decision=decision))
    kinds = {"PROCEED": "good", "PARTIAL": "fair", "UNFINISHED": "unknown", "BLOCKED": "bad"}
    kind = kinds[decision.name]
    section = next(e for e in parsed(render(report)).iter("section"))
    assert section.get("class") == f"verdict {kind}"
    assert words(render(report)).startswith(f"{decision.name}: run - safe-probe")


def test_says_what_the_report_says(whole: Report) -> None:
    text = words(render(whole))
    for outcome in whole.outcomes:
        assert outcome.criterion.title in text
        assert " ".join(outcome.evidence.split()) in text
    for claim in whole.claims:
        assert claim.stated in text
    for item in whole.checklist:
        assert item.text in text
    for link in whole.chain:
        assert f"{link.name} {link.health.value} {link.number}" in text
    assert whole.verdict.next_step.command in text
    assert "model.projector.num_tokens" in text
    assert f"verified above {VERIFIED_ABOVE:g}" in text


def test_broken_link_is_marked_and_leads_to_its_finding(make_whole_run: Factory) -> None:
    report = Report.of(make_whole_run(gate=0.0, swapped=0.0, contribution=0.0, shuffled=40.5))
    document = parsed(render(report))
    chain = next(e for e in document.iter("ol"))
    kinds = [e.get("class") for e in chain.iter("li")]
    assert kinds[4] == "bad root"
    assert all("dead" in str(kind) for kind in kinds[5:])
    assert not any("dead" in str(kind) for kind in kinds[:5])
    link = next(e for e in chain.iter("a"))
    finding = next(e for e in document.iter("article") if f"#{e.get('id')}" == link.get("href"))
    assert link.text == "SP211"
    assert "SP211 error" in "".join(finding.itertext())


def test_empty_run(make_run: Factory) -> None:
    folder = make_run("empty")
    text = words(render(Report.of(folder)))
    assert f"safe-probe check {folder} --output {folder}/check" in text
    assert f"safe-train evaluate {folder}" in text
    assert "Not measured: the gates." in text
    assert "<figure" not in render(Report.of(folder))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300, 1e-300])
def test_any_number_can_be_drawn(make_whole_run: Factory, run_rows: Rows, value: float) -> None:
    metrics = [*run_rows["steps"](), *run_rows["evaluations"]({1: 10, 2: 20})]
    keys = ("loss", "grad_norm/projector", "gate/2", "cider", "cider_low")
    metrics = [{k: value if k in keys else v for k, v in row.items()} for row in metrics]
    records = [replace(r, value=value) for r in run_rows["records"]()]
    report = Report.of(make_whole_run(metrics=metrics, records=records))
    parsed(render(report))


@pytest.mark.parametrize("row", [0, 14, 29])
def test_one_bad_step_is_a_gap(make_whole_run: Factory, run_rows: Rows, row: int) -> None:
    metrics = run_rows["steps"]()
    metrics[row] |= {"loss": math.nan, "grad_norm/total": math.inf, "skipped": True}
    text = words(render(Report.of(make_whole_run(metrics=metrics))))
    assert "1 steps without a finite loss" in text


def _skeleton(text: str) -> list[tuple[str, ...]]:
    """Elements and their attributes' names; nothing of a picture but that it is there."""
    document = parsed(text)
    inside = {id(e) for svg in document.iter() if local(svg) == "svg" for e in svg.iter()}
    return [(local(e), *sorted(map(str, e.attrib)))
            for e in document.iter() if id(e) not in inside or local(e) == "svg"]  # fmt: skip


@pytest.fixture(scope="module")
def tame(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return spoiled(tmp_path_factory.mktemp("tame"), "tame")


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("bad", HOSTILE[::3], ids=range(0, len(HOSTILE), 3))
def test_hostile_text_stays_text(tame: Report, tmp_path: Path, bad: str) -> None:
    text = render(spoiled(tmp_path, bad))
    assert Counter(_skeleton(text)) == Counter(_skeleton(render(tame)))
    assert "".join(plain(bad)[:60].split()) in "".join(words(text).split())
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("bad", [" ".join(MARKUP[i : i + 8]) for i in range(0, len(MARKUP), 8)])
def test_hostile_text_in_pictures(tmp_path: Path, bad: str) -> None:
    document = parsed(render(spoiled(tmp_path, bad)))
    inside = {local(e) for svg in document.iter() if local(svg) == "svg" for e in svg.iter()}
    assert inside <= {
        "svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect", "title", "desc",
        "circle",
    }  # fmt: skip


def test_hostile_names_in_a_comparison(make_whole_run: Factory, tmp_path: Path) -> None:
    text = render_comparison([Report.of(make_whole_run("other")), spoiled(tmp_path, MARKUP[1])])
    assert {local(e) for e in parsed(text).iter()}.isdisjoint({"img", "script"})


def test_a_hundred_thousand_steps(make_run: Factory, run_rows: Rows) -> None:
    metrics = run_rows["steps"](100_000)
    metrics[54_321]["loss"] = 77.7
    captions = run_rows["captions"](5000)
    text = render(Report.of(make_run(metrics=metrics, captions=captions)))
    assert len(text.encode()) < 1_000_000
    assert "77.7" in text  # the spike is still there


@pytest.mark.usefixtures("no_plots")
def test_sounds_go_first(
    make_whole_run: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 80_000), 8_000)
    report = Report.of(make_whole_run(audio=str(tmp_path / "a.wav")))
    with_sound = render(report)
    assert with_sound.count("<audio") == 9
    monkeypatch.setattr(html, "MOST_BYTES", len(with_sound.encode()) - 1)
    without = render(report)
    assert "<audio" not in without
    assert html.TOO_LARGE in words(without)
    assert len(without.encode()) < html.MOST_BYTES


@pytest.mark.usefixtures("no_plots")
def test_texts_are_shortened_when_all_else_fails(make_whole_run: Factory) -> None:
    flood = {f"key {i}": "日" * 3000 for i in range(300)}
    report = Report.of(make_whole_run(environment=flood, resources=flood))
    report = replace(report, findings=tuple(
        Finding("SP201", Severity.ERROR, f"part {i}", 3, *["z" * 3000] * 4, link=Link.GATE)
        for i in range(300)
    ))  # fmt: skip
    text = render(report)
    assert len(text.encode()) < 3_000_000
    assert "... (2,850 more characters)" in text
    assert "200 more: safe-probe report prints all" in words(text)


@pytest.mark.usefixtures("no_plots")
def test_written_whole_or_not_at_all(
    whole: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "report.html"
    assert write(whole, path) == path
    before = path.read_bytes()
    monkeypatch.setattr(html.os, "replace", _refuse)
    with pytest.raises(OSError, match="disk"):
        write(whole, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def _refuse(*_: object) -> None:
    raise OSError("disk is gone")


def test_notebook_shows_the_page_in_a_frame(whole: Report) -> None:
    shown = whole._repr_html_()
    frame = html5lib.parseFragment(shown, namespaceHTMLElements=False)[0]
    assert frame.tag == "iframe"
    assert "sandbox" in frame.attrib
    parsed(frame.get("srcdoc"))
    assert "<audio" not in frame.get("srcdoc")


def test_comparison(make_whole_run: Factory, make_run: Factory) -> None:
    good = Report.of(make_whole_run("good", config={"model.projector.scale": 4.0}))
    bad = Report.of(make_whole_run("bad", gate=0.0, swapped=0.0, contribution=0.0, score=20.0))
    text = words(render_comparison([good, bad, Report.of(make_run("empty"))]))
    assert "PROCEED A good 41.0 [36.0, 46.0]" in text
    assert "-21.0 [-21.0, -21.0] on 40 clips: worse" in text
    assert "model.projector.scale 4.0" in text
    assert re.search(r"new in B SP\d+ error", text)
    assert "C was not looked at by the probes" in text
    assert [f.get("id") for f in parsed(render_comparison([good, bad])).iter("figure")] == [
        "loss", "cider",
    ]  # fmt: skip


def test_comparison_needs_two(whole: Report) -> None:
    with pytest.raises(ReportError, match="at least two runs, got 1"):
        render_comparison([whole])


def test_needs_no_torch(make_whole_run: Factory, tmp_path: Path) -> None:
    code = (
        "import sys; from reports.html import write; from reports.report import Report; "
        f"write(Report.of({str(make_whole_run())!r}), {str(tmp_path / 'r.html')!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.usefixtures("no_plots")
def test_parameters_beyond_what_was_declared_are_marked(
    make_whole_run: Factory, run_rows: Rows
) -> None:
    """LoRA's number depends on the width of the keys, which the configuration does not know."""
    text = words(render(Report.of(make_whole_run())))
    assert re.search(r"projector \S+ 6,823,936 differs", text)  # the demo's is smaller
    assert re.search(r"fusion \(LoRA\) at most \S+ 10,240 ", text)
