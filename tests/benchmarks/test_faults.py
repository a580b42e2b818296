"""The scoreboard of planted faults: a few of them quickly, all of them slowly."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults import scoreboard
from benchmarks.faults.__main__ import _summary, main
from benchmarks.faults.bench import build
from benchmarks.faults.catalogue import FAULTS
from benchmarks.faults.healthy import healthy
from benchmarks.faults.registry import BASE
from benchmarks.faults.scoreboard import Outcome, examine, examine_fault, totals
from benchmarks.faults.standins import BY_HAND, NAMES, stand_ins
from probes.findings.catalogue import CATALOGUE

pytestmark = [
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT"),
]
QUICK = (
    "projector_not_in_optimizer", "gate_frozen", "layernorm_after_scale", "labels_shifted",
    "hook_never_called",
)  # fmt: skip
WAYS = ("autocast-bfloat16", "gradient-checkpointing", "accumulation4", "peft-wrapped")
SEEN = re.compile(r"[\w.-]+(/[\w.-]+)?( PR)? #\d+|textbook: |a real run: |the seed")


def test_there_are_forty_of_each_and_every_code_exists() -> None:
    assert len(FAULTS) >= 40 and len(healthy()) >= 40
    for fault in FAULTS.values():
        assert SEEN.match(fault.source), f"{fault.name}: an issue, a paper or a reason"
        assert fault.about.endswith(".")
        assert fault.expected and all(code in CATALOGUE for code, _ in fault.expected), fault.name


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_found_and_named_as_the_root(name: str) -> None:
    outcome = examine_fault(FAULTS[name])
    assert outcome.hit and outcome.named, outcome


def test_the_set_up_that_faults_change_is_healthy() -> None:
    outcome = examine("base", lambda: build(**BASE))
    assert not outcome.found
    assert not any(outcome.others.values())


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_train_are_healthy(way: str) -> None:
    outcome = examine(way, healthy()[f"demo/{way}/step0"])
    assert not outcome.errors


def test_each_stand_in_cries_at_what_it_can_see() -> None:
    said = stand_ins(FAULTS["projector_not_in_optimizer"].build())
    assert [said[name] for name in BY_HAND] == [False, False, True]
    every = stand_ins(FAULTS["nan_in_projector"].build())
    assert every["global norm"] and every["norms by parameter"]


@pytest.mark.slow
def test_torchlens_cries_at_what_is_not_finite() -> None:
    pytest.importorskip("torchlens", reason="torchlens is in the extra `bench`")
    fine = stand_ins(build(**BASE))
    assert fine["torchlens, critical"] is False
    assert stand_ins(FAULTS["nan_in_projector"].build())["torchlens, critical"]


OUTCOME = Outcome(
    name="x", expected=("SP401 fusion",), root="SP401 fusion", found={"SP401 fusion": (2,)},
    errors=(), planted=(2,), others=dict.fromkeys(NAMES, False), step=0, seconds=1.0,
)  # fmt: skip


def test_a_fault_counts_as_found_only_at_its_layers() -> None:
    assert OUTCOME.hit and OUTCOME.by_layer and OUTCOME.hard and OUTCOME.early
    elsewhere = replace(OUTCOME, planted=(4,))
    everywhere = replace(OUTCOME, planted=(2, 4))
    assert not elsewhere.hit and not everywhere.hit and not elsewhere.early
    assert replace(OUTCOME, planted=None).hit and not replace(OUTCOME, planted=None).by_layer
    whole = replace(OUTCOME, found={"SP401 fusion": ()})
    assert whole.hit and not whole.by_layer
    late = replace(OUTCOME, step=300)
    t = totals([OUTCOME, elsewhere, late], [])
    assert (t["found"], t["with_layers"], t["found_at_their_layers"]) == (2, 3, 2)
    assert (t["hard"], t["hard_found_within_a_step"]) == (3, 1)


@pytest.mark.parametrize("installed", [True, False])
def test_a_stand_in_without_an_answer_is_not_counted_as_silent(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoreboard, "INSTALLED", NAMES if installed else BY_HAND)
    absent = replace(OUTCOME, others={**OUTCOME.others, "torchlens, any": None})
    _summary([OUTCOME, absent], [])
    words = "cries at 0 of 2 faults and 0 of 0 healthy set-ups; it fails itself on 1 set-ups"
    out = capsys.readouterr().out
    assert f"torchlens, any       {words if installed else 'not installed'}\n" in out
    assert "parameters changed   cries at 0 of 2 faults and 0 of 0 healthy set-ups\n" in out


def test_one_fault_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    assert main(["--only", "gate_frozen", "--json", str(file)]) == 0
    scores = json.loads(file.read_text())
    assert scores["totals"]["faults"] == scores["totals"]["found"] == 1
    assert scores["faults"][0]["root"] == "SP203 gate"
    assert "faults found: 1 of 1" in capsys.readouterr().out


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "gate_frozn"])
    assert "gate_frozen" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sample_of_the_scoreboard_holds() -> None:
    """Every sixth fault, every tenth fresh set-up; `python -m benchmarks.faults` runs all."""
    outcomes = [examine_fault(fault) for fault in list(FAULTS.values())[::6]]
    assert [outcome.name for outcome in outcomes if not outcome.hit] == []
    fresh = [(n, make) for n, make in healthy().items() if n.endswith("step0")]
    assert [n for n, make in fresh[::10] if examine(n, make).errors] == []
