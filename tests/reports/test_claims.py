"""The audit of the plan's numbers: both sides of each comparison, recomputed."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from configs.claims import STATED
from probes.findings.facts import Facts
from reports import claims
from reports.checklist import checklist
from reports.claims import AGREES, NOT_MEASURED, OFF, audit, compared
from reports.grade import Grade
from reports.report import Report
from reports.run import read_run


def by_name() -> dict[str, claims.ClaimCheck]:
    return {claim.name: claim for claim in audit()}


def test_every_claim_has_both_sides_a_verdict_and_a_source() -> None:
    found = audit()
    assert len({claim.name for claim in found}) == len(found) >= 25
    for claim in found:
        assert claim.stated and claim.found and claim.source and claim.where
        assert claim.verdict in (AGREES, OFF, NOT_MEASURED)
        assert claim.verdict != OFF or claim.detail  # by how much, or in what


@given(st.floats(0.01, 1e9), st.floats(0.01, 1e9))
def test_agreement_is_within_a_tenth_of_what_was_stated(stated: float, found: float) -> None:
    verdict = compared("x", stated, found, "", "").verdict
    assert (verdict == AGREES) is (abs(found - stated) <= 0.1 * stated)


def test_what_the_plan_got_right_and_wrong() -> None:
    found = by_name()
    assert {found[f"projector, {name}"].verdict for name in ("baseline", "phase1")} == {AGREES}
    assert found["LoRA, phase1"].verdict == AGREES
    # rank 8 at 3 layers x 4 matrices x (5120 + 5120), not 0.16M
    assert found["LoRA, baseline"].found == f"{3 * 4 * 8 * 2 * 5120 / 1e6:.4g}M"
    assert found["LoRA, baseline"].detail == "off by 6.1x"
    assert found["all trainable, phase1"].detail == "off by 2.1x"
    share = found["share of the best"]
    assert share.verdict == OFF and f"{35 / 84.1:.0%}-{42 / 84.1:.0%}" in share.found
    for name in ("more granular audio", "projector bottleneck", "text magnitude",
                 "connectivity verified", "baseline's fusion"):  # fmt: skip
        assert found[name].verdict == OFF
    for name in ("LoRA rank", "audio tokens", "projector learning rate", "effective batch"):
        assert found[name].verdict == AGREES


def test_amplitude_of_the_tokens_by_drawing_them() -> None:
    z = np.random.default_rng(0).normal(size=(200, 5120))
    drawn = np.linalg.norm(2 * np.tanh(0.1 * z), axis=1).mean()
    saturated = np.linalg.norm(2 * np.sign(z), axis=1).mean()
    found = by_name()["audio magnitude"].found
    assert f"L2 {drawn:.0f} " in found and f"to {saturated:.0f} " in found


def test_planned_memory_is_what_params_plans() -> None:
    from probes.context import Context
    from probes.parameters import measure
    from safe_probe.sizes import memory_plan, sized_model

    model, config = sized_model("phase1", [], None, Console(file=io.StringIO()))
    plan = memory_plan(model, config, Facts(measure(Context.of(model))))
    total = sum(part.bytes for part in plan)
    assert total == pytest.approx(claims.PLANNED_BYTES, rel=5e-4)
    low, _ = STATED["phase1"].memory or (0, 0)
    assert total < low  # as the claim says


def test_run_adds_what_it_measured(make_whole_run: Callable[..., Path]) -> None:
    found = {claim.name: claim for claim in audit(read_run(make_whole_run()))}
    assert "here 300 to 800 where the audio is added" in found["text magnitude"].found
    assert "process memory" in found["memory"].found and found["memory"].verdict == NOT_MEASURED


# --- the checklist


def test_checklist_is_ticked_from_what_is_found(make_whole_run: Callable[..., Path]) -> None:
    report = Report.of(make_whole_run())
    marks = {item.text: item.mark for item in report.checklist}
    assert len(marks) == 10 and set(marks.values()) <= {"[x]", "[?]"}
    assert marks["Script is executable"] == "[x]" and marks["Final CIDEr"] == "[x]"
    bad = Report.of(make_whole_run("bad", score=20.0, config={"data.root": "/not/there"}))
    marks = {item.text: item.mark for item in bad.checklist}
    assert marks["Final CIDEr"] == marks["Data directory exists"] == "[ ]"


def test_checklist_before_any_run_knows_what_comes_before() -> None:
    items = checklist()
    assert {item.grade for item in items if item.phase != "before"} == {Grade.UNKNOWN}
    assert all(item.grade is not Grade.UNKNOWN for item in items[:3])
    json.dumps([item.to_json() for item in items])
