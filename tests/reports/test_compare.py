"""Runs side by side: what differs, and what cannot be compared."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reports.compare import Comparison
from reports.compare_view import comparison_view
from reports.errors import ReportError
from reports.paired import paired_difference
from reports.report import Report
from safe.evaluation import bootstrap


def compare(*folders: Path) -> Comparison:
    return Comparison.of([Report.of(folder) for folder in folders])


def shown(comparison: Comparison, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(comparison_view(comparison))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def noisy_scores(run_rows: Any, score: float, clips: int = 40) -> dict[str, Any]:
    """Per-clip scores with the same hard and easy clips, and some noise that goes by the mean."""
    scores: dict[str, Any] = run_rows["scores"](score, clips=clips)
    per_clip = {
        f"clip-{i:04}": score + 30 * math.sin(i) + 3 * math.sin(score * i) for i in range(clips)
    }
    scores["scores"]["per_clip_cider"] = per_clip
    return scores


def test_the_difference_is_paired_and_agrees_with_the_trainings_own(
    make_whole_run: Any, run_rows: Any
) -> None:
    ours, theirs = noisy_scores(run_rows, 31.0), noisy_scores(run_rows, 38.0)
    sides = compare(
        make_whole_run("a", evaluation=ours), make_whole_run("b", evaluation=theirs)
    ).sides  # fmt: skip
    assert sides[0].difference is None and sides[0].not_comparable == ""
    found = sides[1].difference
    assert found is not None and found.clips == 40
    first, second = (list(s["scores"]["per_clip_cider"].values()) for s in (ours, theirs))
    assert found.mean == pytest.approx(sum(second) / 40 - sum(first) / 40)
    expected = bootstrap.paired_difference(second, first, n_resamples=4000, seed=1)
    # ends from other resamples lie 0.04 apart; each score alone has 6.8 to either side
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.1)
    again = paired_difference(*(s["scores"]["per_clip_cider"] for s in (ours, theirs)))
    assert again == found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"split": "val"}, "scored with different splits: test and val"),
        ({"tokenizer": "ptb"}, "scored with different tokenizers: java-free and ptb"),
        ({"clips": 20}, "scored on different clips (40 and 20, 20 of them in both)"),
        ({"nan": True}, "a clip's score is not a number"),
        ({"missing": True}, "b has no final scores"),
    ],
)
def test_what_cannot_be_compared_gets_a_reason_and_no_number(
    change: dict[str, Any], reason: str, make_whole_run: Any, run_rows: Any
) -> None:
    scores: dict[str, Any] = run_rows["scores"](30, clips=change.get("clips", 40))
    scores["split"] = change.get("split", "test")
    scores["scores"]["tokenizer"] = change.get("tokenizer", "java-free")
    if change.get("nan"):
        scores["scores"]["per_clip_cider"]["clip-0003"] = math.nan
    b = make_whole_run("b", evaluation=None if change.get("missing") else scores)
    comparison = compare(make_whole_run("a"), b)
    assert comparison.sides[1].difference is None
    assert reason in comparison.sides[1].not_comparable
    text = shown(comparison)
    assert "B - A" not in text and "not comparable with A" in text


def test_a_few_lost_clips_do_not_forbid_it(make_whole_run: Any, run_rows: Any) -> None:
    fewer = make_whole_run("b", evaluation=run_rows["scores"](30, clips=37))
    difference = compare(make_whole_run("a"), fewer).sides[1].difference
    assert difference is not None and difference.clips == 37


def test_settings_criteria_and_findings(make_whole_run: Any) -> None:
    healthy = make_whole_run("healthy", config={"model.projector.scale": 2.0})
    broken = make_whole_run("broken", gate=0.0, contribution=0.0, score=12, shuffled=12)
    comparison = compare(healthy, broken)
    assert comparison.settings == {"model.projector.scale": (2.0, 16.0)}
    assert [grade for grade, _ in comparison.criteria["Final CIDEr"]] == ["PASS", "FAIL"]
    gained = {f.code for f in comparison.sides[1].gained}
    assert "SP211" in gained and comparison.sides[1].lost == ()
    turned = compare(broken, healthy).sides[1]
    assert {f.code for f in turned.lost} == gained and turned.gained == ()
    text = shown(comparison)
    for part in (
        "model.projector.scale  2.0 | 16.0", "new in B  SP211 error", "PROCEED", "BLOCKED",
        "worse", "5.87 -> 2 at epoch 3", "unknown in all: CIDEr after epoch 1",
    ):  # fmt: skip
        assert part in text, text


def test_a_run_that_was_not_probed_has_not_lost_its_findings_silently(make_whole_run: Any) -> None:
    probed = make_whole_run("a", gate=0.0, contribution=0.0)
    text = shown(compare(probed, make_whole_run("b", records=None)))
    assert "gone in B" in text
    assert "B was not looked at by the probes" in text


@pytest.mark.parametrize("width", [40, 80, 160])
def test_nothing_is_cut_off(width: int, make_whole_run: Any) -> None:
    runs = [make_whole_run(name) for name in ("a", "b", "c", "d")]
    text = shown(compare(*runs), width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text and "\x1b" not in text


def test_same_names_are_told_apart_and_foreign_ones_are_text(make_whole_run: Any) -> None:
    a, b = make_whole_run("x/run"), make_whole_run("[red]y\x1b/run")
    comparison = compare(a, b)
    assert [side.name for side in comparison.sides] == ["x/run", "[red]y\x1b/run"]
    assert r"[red]y\x1b/run" in shown(comparison)


def test_json_has_no_nan(make_whole_run: Any, run_rows: Any) -> None:
    rows = run_rows["steps"]()
    rows[3]["loss"] = math.nan
    value = compare(make_whole_run("a"), make_whole_run("b", metrics=rows)).to_json()
    back = json.loads(json.dumps(value, allow_nan=False))
    assert back["schema"] == "safe-probe.comparison" and len(back["runs"]) == 2
    assert back["runs"][1]["loss"][3][1] == "NaN"
    assert set(back["runs"][1]["difference"]) == {"mean", "low", "high", "clips"}


@pytest.mark.parametrize(
    "scores",
    [{"cider": "x", "cider_interval": [1]}, {"per_clip_cider": [1, 2]},
     {"per_clip_cider": {"clip-0000": "x"}}],
)  # fmt: skip
def test_damaged_scores_are_not_compared(scores: Any, make_whole_run: Any, run_rows: Any) -> None:
    damaged = run_rows["scores"]() | {"scores": scores}
    rows = [{"kind": "step", "step": 1, "epoch": 1, "loss": {}}]
    b = make_whole_run("b", evaluation=damaged, metrics=rows)
    comparison = compare(make_whole_run("a"), b)
    assert comparison.sides[1].difference is None and comparison.sides[1].not_comparable
    json.dumps(comparison.to_json(), allow_nan=False)
    shown(comparison)


def test_one_run_is_no_comparison(make_whole_run: Any) -> None:
    with pytest.raises(ReportError, match="at least two runs, got 1"):
        compare(make_whole_run("a"))
