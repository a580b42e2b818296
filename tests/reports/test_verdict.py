"""The verdict's table, exhaustively; and what to type next, read back by its own program."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.record import Record
from reports.criteria import CRITERIA
from reports.criterion import Measurement, Outcome
from reports.grade import Grade
from reports.report import Report
from reports.run import Run, read_run
from reports.verdict import Decision, decision_of
from safe.cli import _config, _parser

MakeRun = Callable[..., Path]
DECIDING = [c for c in CRITERIA if c.decides]
GRADES = st.lists(st.sampled_from(Grade), min_size=len(CRITERIA), max_size=len(CRITERIA))


def outcomes(grades: Sequence[Grade], criteria: Sequence[Any] = CRITERIA) -> list[Outcome]:
    return [Outcome(c, g, None, "", "") for c, g in zip(criteria, grades, strict=True)]


def test_every_combination_of_the_deciding_criteria() -> None:
    assert DECIDING[0].name == "final_cider" and len(DECIDING) == 5
    seen = set()
    for grades in product(Grade, repeat=len(DECIDING)):
        early = decision_of(outcomes(grades, DECIDING), over=False)
        got = decision_of(outcomes(grades, DECIDING))
        if Grade.FAIL in grades or grades[0] is Grade.UNKNOWN:
            assert got is Decision.BLOCKED
            assert early is (got if Grade.FAIL in grades else Decision.UNFINISHED)
        elif all(g is Grade.PASS for g in grades):
            assert got is Decision.PROCEED
        else:
            assert got is Decision.PARTIAL
        assert early is got or early is Decision.UNFINISHED
        seen |= {got, early}
    assert seen == set(Decision)


@given(GRADES, st.integers(0, len(CRITERIA) - 1), st.randoms())
def test_failing_never_improves_and_order_does_not_matter(
    grades: list[Grade], at: int, random: Any
) -> None:
    before = outcomes(grades)
    decision = decision_of(before)
    worse = [*before]
    worse[at] = replace(worse[at], grade=Grade.FAIL)
    assert decision_of(worse) <= decision
    # also when a further failing criterion is added
    extra = Outcome(replace(CRITERIA[0], name="new", decides=True), Grade.FAIL, None, "", "")
    assert decision_of([*before, extra]) is Decision.BLOCKED
    random.shuffle(before)
    assert decision_of(before) is decision


@given(GRADES, GRADES)
def test_what_does_not_decide_changes_nothing(ours: list[Grade], theirs: list[Grade]) -> None:
    mixed = [o if c.decides else t for c, o, t in zip(CRITERIA, ours, theirs, strict=True)]
    assert decision_of(outcomes(ours)) is decision_of(outcomes(mixed))


@given(GRADES, st.integers(0, len(CRITERIA) - 1))
def test_not_knowing_never_proceeds(grades: list[Grade], at: int) -> None:
    grades[at] = Grade.UNKNOWN
    if CRITERIA[at].decides:
        assert decision_of(outcomes(grades)) is not Decision.PROCEED


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda c: c.name)
def test_no_criterion_passes_by_a_value_that_is_none(criterion: Any, value: float | None) -> None:
    measured = replace(criterion, measure=lambda _: Measurement(value, "planted"))
    assert measured.judge(None).grade is Grade.UNKNOWN  # type: ignore[arg-type]


def test_exception_in_a_criterion_is_unknown_with_its_reason(make_whole_run: MakeRun) -> None:
    def fails(_: Run) -> Measurement:
        raise KeyError("tokenizer")

    got = replace(CRITERIA[0], measure=fails).judge(read_run(make_whole_run()))
    assert got.grade is Grade.UNKNOWN and "KeyError: 'tokenizer'" in got.evidence


# --- whole runs


def test_healthy_run_proceeds_to_phase_2_on_its_own_pieces(make_whole_run: MakeRun) -> None:
    report = Report.of(make_whole_run())
    assert report.verdict.decision is Decision.PROCEED, report.verdict.reason
    assert report.verdict.next_step.kind == "phase2"
    config = asked_for(report)
    assert config.name == "phase2" and config.model.projector.bottleneck_dim is None
    assert config.model.backbone == "embedded" and config.data.root == "synthetic"
    assert config.optim.epochs == 50  # its own, not the run's
    assert all(link.health.value == "ok" for link in report.chain)
    again = Report.of(report.run.path)
    assert again.to_json() == report.to_json()


def test_score_without_influence_is_blocked_and_says_why(make_whole_run: MakeRun) -> None:
    report = Report.of(make_whole_run(score=40.0, shuffled=41.0))
    assert report.verdict.decision is Decision.BLOCKED
    assert "another clip's audio" in report.verdict.reason
    report = Report.of(make_whole_run("deaf", score=40.0, swapped=0.0))
    assert report.verdict.decision is Decision.BLOCKED
    assert "The audio changes the output" in report.verdict.reason


def test_partial_score_trains_on(make_whole_run: MakeRun) -> None:
    report = Report.of(make_whole_run(score=27.0, shuffled=3.0))
    assert report.verdict.decision is Decision.PARTIAL
    assert asked_for(report).optim.epochs == 6


def test_low_score_with_every_link_whole_goes_back_to_the_baseline(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    few = Report.of(make_whole_run("few", score=20.0, shuffled=3.0))
    assert few.verdict.decision is Decision.BLOCKED  # of 30 steps nothing is known yet
    assert "30 steps are too few" in few.verdict.next_step.why and asked_for(few).optim.epochs == 6
    metrics, records = run_rows["steps"](steps=120), run_rows["records"](step=120)
    files = {"metrics": metrics, "records": records}
    report = Report.of(make_whole_run(score=20.0, shuffled=3.0, **files))
    assert report.verdict.decision is Decision.BLOCKED
    step = report.verdict.next_step
    assert shlex.split(step.command) == ["safe-train", "rollback", str(report.run.path), "--apply"]
    assert "model.projector.scale: 16.0 -> 2.0" in step.changes


def test_closed_gate_is_the_broken_link_and_its_remedy_the_command(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    records = [
        replace(r, value=0.0)
        if (r.probe, r.statistic) in {("gates", s) for s in ("raw", "value", "effective", "moved")}
        else r
        for r in run_rows["records"](contribution=0.0, swapped=0.0)
    ]
    path = make_whole_run(records=records, config={"model.fusion.gate_init": 0.0})
    report = Report.of(path)
    assert report.verdict.decision is Decision.BLOCKED
    root = report.verdict.root
    assert root is not None and root.link.name in ("FUSION", "GATE")
    assert [link.name for link in report.chain if link.root] == [root.link.name.lower()]
    assert asked_for(report).model.fusion.gate_init == 0.3


def test_stopped_run_goes_on_and_a_running_one_is_watched(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    import json
    import os
    import socket

    rows = run_rows["steps"]()[:12]
    path = make_whole_run(metrics=rows, records=None, evaluation=None, captions=None)
    report = Report.of(path)
    assert report.verdict.decision is Decision.UNFINISHED and not report.run.finished
    assert report.verdict.next_step.command == f"safe-train demo --resume {path}"
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    (path / "run.lock").write_text(json.dumps(owner))
    assert Report.of(path).verdict.next_step.kind == "wait"
    (path / "run.lock").write_text(json.dumps(owner | {"pid": 2**22 + 5}))  # above any pid
    assert Report.of(path).verdict.next_step.kind == "resume"


def test_what_decides_and_is_unknown_is_measured_next(make_whole_run: MakeRun) -> None:
    path = make_whole_run(records=None)
    report = Report.of(path)
    assert report.verdict.decision is Decision.PARTIAL
    words = shlex.split(report.verdict.next_step.command)
    assert words == ["safe-probe", "check", str(path), "--output", f"{path}/check"]
    path = make_whole_run("unscored", evaluation=None)
    step = Report.of(path).verdict.next_step
    assert shlex.split(step.command) == ["safe-train", "evaluate", str(path)]


def test_measurement_of_an_earlier_step_does_not_count(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    early: list[Record] = run_rows["records"](step=20)
    report = Report.of(make_whole_run(records=early))
    unknown = {o.criterion.name for o in report.outcomes if o.grade is Grade.UNKNOWN}
    assert {"audio_influence", "open_findings"} <= unknown


def test_checkpoint_is_judged_by_what_was_known_at_its_step(make_whole_run: MakeRun) -> None:
    path = make_whole_run()
    checkpoint = path / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    report = Report.of(checkpoint)
    assert (report.run.now, report.run.last_step) == (12, 12)
    assert report.verdict.decision is Decision.BLOCKED  # not scored
    assert {r.step for r in report.run.probed} == {0}


def asked_for(report: Report) -> Any:
    """The configuration that the next command asks for, read by safe-train itself."""
    words = shlex.split(report.verdict.next_step.command)
    assert words[0] == "safe-train"
    parser, _ = _parser()
    return _config(parser.parse_args(words[1:]))[0]


def test_link_that_could_not_be_measured_is_not_ok(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    # every clip the same: there is no other clip's audio to compare with
    records = [r for r in run_rows["records"]() if r.component != "signal:swapped"]
    report = Report.of(make_whole_run(records=records))
    health = {link.link.name: link.health.value for link in report.chain}
    assert health.pop("INFLUENCE") == "unknown" and set(health.values()) == {"ok"}


def test_an_encoder_that_saw_one_sound_is_not_called_whole(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    alike = [
        replace(r, value=1.0) if r.statistic == "cosine_between_clips" else r
        for r in run_rows["records"]()
    ]
    chain = Report.of(make_whole_run(records=alike)).chain
    health = {link.link.name: link.health.value for link in chain}
    assert health["ENCODER"] == "unknown"


def test_advice_that_was_followed_is_not_given_again(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    import json

    path = make_whole_run(evaluation={})  # cut off while it was written
    step = Report.of(path).verdict.next_step
    assert shlex.split(step.command) == ["safe-train", "evaluate", str(path)]
    later = path / "evaluations" / "adapter-test"
    later.mkdir(parents=True)
    (later / "evaluation.json").write_text(json.dumps(run_rows["scores"]()))
    assert Report.of(path).verdict.decision is Decision.PROCEED


def test_own_setting_at_the_broken_link_is_taken_back(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    deaf = [Record(30, "data", "signal", None, name, value, "clips") for name, value in
            (("clips", 16.0), ("distinct", 1 / 16), ("cosine_between_clips", 1.0))]  # fmt: skip
    path = make_whole_run(records=[*run_rows["records"](), *deaf], config={"data.audio": "mean"})
    report = Report.of(path)
    assert report.verdict.root is not None and report.verdict.root.code == "SP609"
    assert report.verdict.next_step.changes == ("data.audio: mean -> own",)
    assert asked_for(report).data.audio == "own"


def test_diverged_run_does_not_go_on_as_before(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    rows = run_rows["steps"]()[:20]
    for row in rows[-5:]:
        row["skipped"] = True
    report = Report.of(make_whole_run(metrics=rows, evaluation=None, records=None))
    assert report.run.diverged and asked_for(report).optim.lr_projector == 1e-3 / 5


def test_last_phase_and_baseline_have_somewhere_to_go(
    make_whole_run: MakeRun, run_rows: dict[str, Any]
) -> None:
    import json

    from configs.model_configs import get_config

    for name, score, kind in (("phase2", 41.0, "done"), ("full", 20.0, "phase1")):
        path = make_whole_run(
            name, score=score, metrics=run_rows["steps"](steps=120),
            records=run_rows["records"](step=120),
        )  # fmt: skip
        config = get_config(name).to_dict()
        config["optim"]["epochs"] = 3
        (path / "config.json").write_text(json.dumps(config))
        assert Report.of(path).verdict.next_step.kind == kind


def test_twice_as_long_is_longer_also_with_a_limit_of_steps(make_whole_run: MakeRun) -> None:
    report = Report.of(make_whole_run(score=27.0, shuffled=3.0, config={"optim.max_steps": 30}))
    assert asked_for(report).optim.max_steps == 60 and asked_for(report).optim.epochs == 6


def test_state_of_the_files_comes_before_the_numbers(make_whole_run: MakeRun) -> None:
    path = make_whole_run()
    (path / "probes.jsonl").write_text("garbage\n")
    report = Report.of(path)
    assert report.verdict.reason.startswith("damaged files: probes.jsonl; ")
