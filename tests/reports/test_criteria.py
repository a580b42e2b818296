"""Every measurement of a criterion against plain recomputation from the files."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.record import Record
from reports import from_probes, from_scores, from_training
from reports.criteria import CRITERIA
from reports.criterion import Measurement
from reports.grade import Grade
from reports.report import Report
from reports.run import Run, read_run

MakeRun = Callable[..., Path]
Makers = dict[str, Callable[..., Any]]


def outcome(run: Run, name: str) -> Any:
    return next(c for c in CRITERIA if c.name == name).judge(run)


def need(found: Measurement | None) -> Measurement:
    assert found is not None
    return found


def test_names_are_unique_and_every_unknown_says_what_to_run(make_run: MakeRun) -> None:
    assert len({c.name for c in CRITERIA}) == len(CRITERIA)
    for c in CRITERIA:
        assert re.match(r"safe-(train|probe) ", c.to_measure) and c.source and c.why
        assert c.phase in ("before", "during", "after")
    run = read_run(make_run())  # nothing but a configuration
    sizes = {"trainable", "projector_size", "lora_size"}
    for c in CRITERIA:
        found = c.judge(run)
        assert found.grade is Grade.UNKNOWN
        assert (found.evidence == "not measured") != (c.name in sizes | {"open_findings"})


# --- scores


@pytest.mark.parametrize(
    ("score", "half", "says"),
    [(41.0, 5.0, None), (31.0, 5.0, "straddles 30"), (27.0, 3.5, "straddles 30"), (26, 2, "25")],
)
def test_interval_that_straddles_a_threshold_is_said(
    make_whole_run: MakeRun, run_rows: Makers, score: float, half: float, says: str | None
) -> None:
    scores = run_rows["scores"](score)
    scores["scores"]["cider_interval"] = [score - half, score + half]
    found = need(from_scores.final_cider(read_run(make_whole_run(evaluation=scores))))
    assert found.value == score
    assert ("straddles" in found.evidence) is (says is not None)
    assert says is None or says in found.evidence


def test_as_many_clips_as_said_settle_it() -> None:
    # the interval of a mean of n values of spread 60, which 30 lies inside of
    spread, clips, score, limit = 60.0, 100, 36.0, 30.0
    half = 1.96 * spread / math.sqrt(clips)
    text = from_scores._clips_needed(score, score - half, score + half, clips, limit)
    more = int(re.search(r"about ([\d,]+) more", text)[1].replace(",", ""))  # type: ignore[index]
    reach = lambda n: 1.96 * spread / math.sqrt(n)  # noqa: E731
    assert reach(clips + more) <= score - limit < reach(clips + more - 2)
    assert "no number of clips" in from_scores._clips_needed(30, 25, 35, 10, 30)


def test_significance_is_the_lower_end(make_whole_run: MakeRun, run_rows: Makers) -> None:
    for low, grade in ((0.01, Grade.PASS), (0.0, Grade.FAIL), (-2.0, Grade.FAIL)):
        scores = run_rows["scores"]()
        scores["versus_shuffled"]["low"] = low
        run = read_run(make_whole_run(f"run{low}", evaluation=scores))
        assert outcome(run, "hears_its_clip").grade is grade


def test_nan_score_passes_nothing(make_whole_run: MakeRun, run_rows: Makers) -> None:
    scores = run_rows["scores"]()
    scores["scores"]["cider"] = math.nan
    report = Report.of(make_whole_run(evaluation=scores))
    assert outcome(report.run, "final_cider").grade is Grade.UNKNOWN
    assert outcome(report.run, "beats_constant").grade is Grade.UNKNOWN
    assert report.verdict.decision.name == "BLOCKED"
    assert "SP704" in {f.code for f in report.findings}


def test_baseline_is_paired_when_both_runs_are_there(
    make_whole_run: MakeRun, run_rows: Makers
) -> None:
    rng = np.random.default_rng(3)
    ours, theirs = run_rows["scores"](40.0), run_rows["scores"](30.0)
    clips = list(ours["scores"]["per_clip_cider"])
    gaps = rng.normal(6, 20, len(clips))
    for clip, gap in zip(clips, gaps, strict=True):
        ours["scores"]["per_clip_cider"][clip] = theirs["scores"]["per_clip_cider"][clip] + gap
    run = replace(
        read_run(make_whole_run("ours", evaluation=ours)),
        baseline=read_run(make_whole_run("theirs", evaluation=theirs)),
    )
    found = need(from_scores.versus_baseline(run))
    error = gaps.std() / math.sqrt(len(gaps))
    # a normal interval is another computation of the same; the bootstrap is within a tenth of it
    assert found.value == pytest.approx(gaps.mean() - 1.96 * error, abs=0.2 * error + 0.1)
    assert f"{gaps.mean():+.1f}" in found.evidence and "against theirs" in found.evidence
    other = json.loads(json.dumps(theirs))
    other["scores"]["per_clip_cider"].pop(clips[0])
    elsewhere = read_run(make_whole_run("else", evaluation=other))
    found = need(from_scores.versus_baseline(replace(run, baseline=elsewhere)))
    assert found.value is None and "not scored on the same clips" in found.evidence
    alone = replace(run, baseline=None)
    assert need(from_scores.versus_baseline(alone)).value is None  # 18 is of AudioCaps' clips
    scored = replace(alone, evaluation=run.evaluation | {"public_scale": {"comparable": True}})
    found = need(from_scores.versus_baseline(scored))
    assert found.value == 40.0 - 18.0 and "stated 18" in found.evidence


def test_generic_captions_by_hand() -> None:
    varied = [f"a {sound} near a {place}" for sound in ("dog", "cat", "cow") for place in "xyz"]
    assert from_scores.generic_rate(["a sound"] * 8) == 1.0
    assert from_scores.generic_rate([f"word{i} here" for i in range(10)]) == 0.0
    # "a", "near" and every sound (3 of 9) and place (3 of 9) are in more than a fifth
    assert from_scores.generic_rate(varied) == 1.0
    assert from_scores.generic_rate([*varied, "thunder rolls"]) == pytest.approx(0.9)
    assert from_scores.generic_rate(["a bell"]) == 0.0  # of one caption nothing can be said


@given(st.lists(st.text(alphabet="ab c", min_size=1, max_size=8), min_size=1, max_size=30))
def test_generic_rate_is_a_share_that_does_not_care_for_order(captions: list[str]) -> None:
    rate = from_scores.generic_rate(captions)
    assert 0 <= rate <= 1 and rate == from_scores.generic_rate(captions[::-1])


# --- training


def test_cider_of_an_epoch_is_that_of_its_evaluation(
    make_whole_run: MakeRun, run_rows: Makers
) -> None:
    rows = [*run_rows["steps"](), *run_rows["evaluations"]({1.0: 9.9, 5.0: 22.0, 10.0: 50.0})]
    run = read_run(make_whole_run(metrics=rows, config={"data.root": "/data/AudioCaps"}))
    grades = [outcome(run, f"cider_epoch_{n}").grade for n in (1, 5, 10)]
    assert grades == [Grade.FAIL, Grade.PASS, Grade.PASS]
    assert "above the expected 35" in outcome(run, "cider_epoch_10").evidence
    other = outcome(read_run(make_whole_run("other", metrics=rows)), "cider_epoch_10")
    assert (other.grade, other.shown, other.to_measure) == (Grade.UNKNOWN, "50.0", "")
    assert "these are other clips" in other.evidence


@pytest.mark.parametrize(
    ("falls_to", "grade"), [(0.7, Grade.PASS), (0.85, Grade.PARTIAL), (0.95, Grade.FAIL)]
)
def test_loss_drop_is_of_the_first_two_epochs(
    make_whole_run: MakeRun, run_rows: Makers, falls_to: float, grade: Grade
) -> None:
    rows = run_rows["steps"](steps=60)  # 20 steps an epoch
    for row in rows:
        row["loss"] = 4.0 if row["epoch"] < 1 else 4.0 * falls_to
        row["loss"] = row["loss"] if row["epoch"] <= 2 else 0.1  # what comes later is not asked
    rows[3]["loss"] = 400.0  # one wild step
    run = read_run(make_whole_run(metrics=rows))
    found = outcome(run, "loss_drop")
    first = median(row["loss"] for row in rows[:5])
    assert found.value == pytest.approx(100 - 100 * median(r["loss"] for r in rows[30:40]) / first)
    assert found.grade is grade and "no evidence of hearing" in found.evidence


def test_run_of_one_epoch_says_nothing_of_two(make_whole_run: MakeRun, run_rows: Makers) -> None:
    run = read_run(make_whole_run(metrics=run_rows["steps"](epochs=1.9)))
    assert outcome(run, "loss_drop").grade is Grade.UNKNOWN


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, "NaN", None])
def test_gradients_are_judged_by_the_worse_part(
    make_whole_run: MakeRun, run_rows: Makers, bad: Any
) -> None:
    rows = run_rows["steps"]()
    for row in rows[:6]:
        row["grad_norm/adapter"] = bad
    found = need(from_training.gradients(read_run(make_whole_run(metrics=rows))))
    assert found.value == pytest.approx(80) and "projector 100.0%" in found.evidence


def test_sizes_of_the_real_model_agree_or_are_off(make_run: MakeRun) -> None:
    from configs.model_configs import get_config

    path = make_run()
    (path / "config.json").write_text(json.dumps(get_config("phase1").to_dict()))
    run = read_run(path)
    got = {n: outcome(run, n) for n in ("trainable", "projector_size", "lora_size")}
    assert {n: o.grade.name for n, o in got.items()} == {
        "trainable": "FAIL", "projector_size": "PASS", "lora_size": "PASS",
    }  # fmt: skip
    # Linear 512-1024 and 1024-(32 x 5120), LayerNorm 512, 4 layers x 4 matrices x rank 64
    projector = 512 * 1024 + 1024 + 1024 * 163_840 + 163_840 + 2 * 512
    lora = 4 * 4 * 64 * 2 * 5120
    assert got["projector_size"].value == projector / 1e6
    assert got["lora_size"].value == lora / 1e6
    assert got["trainable"].value == (projector + lora + 4) / 1e6


def test_cost_of_another_model_is_shown_and_not_judged(make_whole_run: MakeRun) -> None:
    run = read_run(make_whole_run())
    for name, shown in (("hours", "0.02 h"), ("memory", "2.0 GB")):
        found = outcome(run, name)
        assert (found.grade, found.shown) == (Grade.UNKNOWN, shown)
        assert "not comparable" in found.evidence


def test_cost_of_the_real_model_is_judged(make_whole_run: MakeRun) -> None:
    path = make_whole_run(
        config={"model.hidden_size": 5120, "model.num_layers": 40},
        resources={"train_seconds": 2.25 * 3600, "peak_bytes": 40e9, "memory": "gpu"},
    )
    run = read_run(path)  # 3 epochs
    assert outcome(run, "hours").value == pytest.approx(15.0)
    assert {outcome(run, n).grade for n in ("hours", "memory")} == {Grade.PASS}


# --- probes


def test_influence_is_change_in_standard_errors(make_whole_run: MakeRun) -> None:
    cases = (
        (0.5, "PASS"),
        (0.03, "PARTIAL"),
        (0.01, "FAIL"),
        (-1.0, "FAIL"),
        (math.nan, "UNKNOWN"),
    )
    for i, (swapped, grade) in enumerate(cases):  # the error is 0.02
        found = outcome(read_run(make_whole_run(f"run{i}", swapped=swapped)), "audio_influence")
        assert found.grade.name == grade, swapped
        assert math.isnan(swapped) or found.value == pytest.approx(swapped / 0.02)


def test_influence_of_unknown_error_is_unknown(make_whole_run: MakeRun, run_rows: Makers) -> None:
    records = [r for r in run_rows["records"]() if r.statistic != "loss_change_error"]
    found = outcome(read_run(make_whole_run(records=records)), "audio_influence")
    assert found.grade is Grade.UNKNOWN and "of unknown error" in found.evidence


@pytest.mark.parametrize(
    "place",
    [("magnitude", "projector", "l2_median"), ("magnitude", "fusion", "contribution_median"),
     ("gates", "gate", "effective"), ("gradflow", "projector", "norm"),
     ("influence", "signal:swapped", "kl"), ("data", "text", "batches")],
    ids="/".join,
)  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "NaN", "of an earlier step"])
def test_whole_path_is_not_said_to_be_sound_by_halves(
    make_whole_run: MakeRun, run_rows: Makers, place: tuple[str, str, str], how: str
) -> None:
    records = []
    for r in run_rows["records"]():
        if (r.probe, r.component, r.statistic) == place and r.step == 30:
            if how == "missing":
                continue
            r = replace(r, value=math.nan) if how == "NaN" else replace(r, step=29)
        records.append(r)
    report = Report.of(make_whole_run(records=records))
    assert report.verdict.decision.name != "PROCEED"
    if how == "NaN":
        assert all(link.health.value != "ok" for link in report.chain if "nan" in link.number)


def test_later_check_of_an_earlier_checkpoint_changes_nothing(
    make_whole_run: MakeRun, run_rows: Makers
) -> None:
    from probes.record import RecordLog

    path = make_whole_run()
    before = Report.of(path).to_json()
    early = [replace(r, step=12, value=0.0) for r in run_rows["records"]() if r.step == 30]
    for folder in (path / "check", path / "check" / "step-00000012"):
        folder.mkdir()
        RecordLog(early).write(folder / "records.jsonl")
    assert Report.of(path).to_json() == before
    checkpoint = read_run(path / "checkpoints" / "step-00000012")
    assert checkpoint.facts.value("gates", "gate", "effective", 2) == 0.0
    assert not checkpoint.resources  # what the whole run cost says nothing of its beginning
    words = checkpoint.fill("safe-probe check RUN --output RUN/check").split()
    assert words[2].endswith("checkpoints/step-00000012") and words[4].endswith(
        "check/step-00000012"
    )


@pytest.mark.parametrize("interval", [(5.0, math.nan, 9.0), (5.0, -3.0, 9.0), (5.0, 6.0, math.nan)])
def test_interval_that_is_none_passes_nothing(
    make_whole_run: MakeRun, run_rows: Makers, interval: tuple[float, float, float]
) -> None:
    scores = run_rows["scores"]()
    scores["versus_shuffled"] |= dict(zip(("low", "mean", "high"), interval, strict=True))
    run = read_run(make_whole_run(evaluation=scores))
    assert outcome(run, "hears_its_clip").grade is Grade.UNKNOWN


def test_losses_and_gradients_that_are_not_there_pass_nothing(
    make_whole_run: MakeRun, run_rows: Makers
) -> None:
    rows = run_rows["steps"](steps=60)
    for row in rows[5:35]:
        row["loss"] = math.nan
    for row in rows[1:]:
        del row["grad_norm/adapter"]
    run = read_run(make_whole_run(metrics=rows))
    assert outcome(run, "loss_drop").grade is Grade.UNKNOWN
    assert outcome(run, "gradients").grade is Grade.FAIL


def test_without_another_audio_the_influence_is_unknown_and_says_why(
    make_whole_run: MakeRun,
) -> None:
    alike = [Record(30, "influence", "signal:swapped", None, "distinct", 0.0, "share")]
    found = need(from_probes.influence(read_run(make_whole_run(records=alike))))
    assert found.value is None and found.evidence.startswith("all clips sound the same")


def test_disconnected_model_has_no_influence(make_whole_run: MakeRun) -> None:
    cut = [Record(30, "influence", "signal:swapped", None, "changed", 0.0, "share")]
    found = need(from_probes.influence(read_run(make_whole_run(records=cut))))
    assert found.value == 0.0 and "no bit" in found.evidence


@pytest.mark.parametrize(
    ("value", "grade"),
    [(0.2, "PASS"), (0.05, "PARTIAL"), (0.9, "PARTIAL"), (0.02, "FAIL"), (1.5, "FAIL"),
     (math.nan, "UNKNOWN")],
)  # fmt: skip
def test_contribution_is_that_of_the_worst_layer_at_the_start(
    make_whole_run: MakeRun, run_rows: Makers, value: float, grade: str
) -> None:
    records = [
        replace(r, value=value) if r.statistic == "contribution_median"
        and r.layer == 4 and r.step == 0 else r
        for r in run_rows["records"]()
    ]  # fmt: skip
    found = outcome(read_run(make_whole_run(records=records)), "contribution")
    assert found.grade.name == grade and "at the start" in found.evidence


@pytest.mark.parametrize(
    ("statistic", "value"),
    [("effective", 0.0), ("trainable", 0.0), ("moved", 0.0), ("moved", math.nan)],
)
def test_gate_that_is_closed_frozen_or_unmoved_is_counted(
    make_whole_run: MakeRun, run_rows: Makers, statistic: str, value: float
) -> None:
    records = [
        replace(r, value=value) if (r.probe, r.statistic, r.layer) == ("gates", statistic, 6) else r
        for r in run_rows["records"]()
    ]
    found = outcome(read_run(make_whole_run(records=records)), "gates")
    assert found.value == 75 and found.grade is Grade.PARTIAL
    assert found.evidence.endswith("at layer 6")


def test_parity_is_bitwise(make_whole_run: MakeRun, run_rows: Makers) -> None:
    records = [
        replace(r, value=1e-6) if r.statistic == "parity_changed" else r
        for r in run_rows["records"]()
    ]
    assert outcome(read_run(make_whole_run(records=records)), "parity").grade is Grade.FAIL
    assert outcome(read_run(make_whole_run("good")), "parity").grade is Grade.PASS


@pytest.mark.parametrize(
    ("share", "grade", "evidence"),
    [
        (0.0, Grade.PASS, "equal bit for bit, with pictures too"),
        (0.5, Grade.FAIL, "50.00% of the logits differ with pictures, by 0.25 at most"),
    ],
)
def test_parity_is_that_of_pictures_too(
    make_whole_run: MakeRun, run_rows: Makers, share: float, grade: Grade, evidence: str
) -> None:
    records = run_rows["records"]()
    last = max(r.step for r in records)
    for statistic, value in (("changed", share), ("max_change", share / 2)):
        name = f"pictures_parity_{statistic}"
        records.append(Record(last, "influence", "gate:zero", None, name, value, "share"))
    found = outcome(read_run(make_whole_run(records=records)), "parity")
    assert (found.grade, found.evidence) == (grade, evidence)
