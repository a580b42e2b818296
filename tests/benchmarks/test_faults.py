"""The scoreboard of planted faults: a few of them quickly, all of them slowly."""

import json
from pathlib import Path

import pytest

from benchmarks.faults.__main__ import main
from benchmarks.faults.bench import build
from benchmarks.faults.catalogue import FAULTS
from benchmarks.faults.healthy import healthy
from benchmarks.faults.registry import BASE
from benchmarks.faults.scoreboard import examine, examine_fault
from benchmarks.faults.standins import NAMES, stand_ins
from probes.findings.catalogue import CATALOGUE

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
QUICK = ("projector_not_in_optimizer", "gate_frozen", "layernorm_after_scale", "labels_shifted")


def test_there_are_forty_of_each_and_every_code_exists() -> None:
    assert len(FAULTS) >= 40 and len(healthy()) >= 40
    for fault in FAULTS.values():
        assert fault.source and fault.about.endswith(".")
        assert fault.expected and all(code in CATALOGUE for code, _ in fault.expected), fault.name


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_found_and_named_as_the_root(name: str) -> None:
    outcome = examine_fault(FAULTS[name])
    assert outcome.hit and outcome.named, outcome


def test_the_set_up_that_faults_change_is_healthy() -> None:
    outcome = examine("base", lambda: build(**BASE))
    assert not outcome.found
    assert not any(outcome.others.values())


def test_each_stand_in_cries_at_what_it_can_see() -> None:
    fault = FAULTS["projector_not_in_optimizer"]
    assert stand_ins(fault.build()) == dict(zip(NAMES, (False, False, True), strict=True))
    every = stand_ins(FAULTS["nan_in_projector"].build())
    assert every[NAMES[0]] and every[NAMES[1]]


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
