"""Scores as records."""

from probes.findings import judge
from probes.record import RecordLog
from probes.scores import score_records

EVALUATION = {
    "scores": {"cider": 31.0, "cider_interval": [28.0, 34.0], "n_clips": 100},
    "controls": {"another clip's audio": {"cider": 30.5}, "gate 0": {"cider": 0.4}},
    "floors": {"commonest caption": {"cider": 19.0}, "nearest neighbour": {"cider": 12.0}},
    "versus_shuffled": {"mean": 0.5, "low": -1.0, "high": 2.0, "significant": False},
    "diversity": {"distinct": 0.4, "commonest_share": 0.2, "commonest": "a dog barks"},
}


def test_every_number_has_its_row() -> None:
    log = RecordLog(score_records(EVALUATION, step=9))
    found = {r.statistic: r.value for r in log}
    assert found == {
        "cider": 31.0, "cider_low": 28.0, "cider_high": 34.0, "clips": 100, "shuffled": 30.5,
        "gate_off": 0.4, "commonest_caption": 19.0, "nearest_neighbour": 12.0,
        "versus_shuffled": 0.5, "versus_shuffled_low": -1.0, "versus_shuffled_high": 2.0,
        "distinct": 0.4, "commonest_share": 0.2,
    }  # fmt: skip
    assert {r.step for r in log} == {9}


def test_a_score_that_does_not_come_from_the_sound_is_an_error() -> None:
    assert [f.code for f in judge(score_records(EVALUATION))] == ["SP701"]


def test_what_is_missing_gives_no_row() -> None:
    assert score_records({}) == []
