"""A training that is killed at any moment ends, when resumed, as one that nothing happened to."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.sizes(3, 30)
def test_kill_9_of_the_trainer(
    size: int, trial: Any, figure: Any, tiny_run: Any, tmp_path: Path
) -> None:
    config = tiny_run.config.to_dict()
    found = trial("training:kill", folder=tmp_path, config=config, kills=size)
    figure(
        "kill -9 of the trainer: {kills} kills in {runs} runs of {rows} rows, {differ} ended with "
        "other bytes than the undisturbed run, {restarted} begun anew".format(**found)
    )
    assert found["rows"] > 6
    assert found["kills"] == size and found["differ"] == 0


def test_random_generators_go_on_where_they_were(trial: Any, tmp_path: Path) -> None:
    assert trial("training:dropout", folder=tmp_path) == {"differ": 0}


@pytest.mark.sizes(5, 110)
def test_signals_that_ask_to_stop(
    size: int, trial: Any, figure: Any, tiny_run: Any, tmp_path: Path
) -> None:
    found = trial("signals:stop", folder=tmp_path, config=tiny_run.config.to_dict(), rounds=size)
    figure(
        "signals in training, saving, evaluating, scoring and caching, doubled and late: {rounds} "
        "trainings stopped after at most {seconds} s, {wrong_code} with another exit code than 3, "
        "{torn} with a torn checkpoint, {differ} ended with other bytes than the undisturbed "
        "run".format(**found)
    )
    assert found["files"] > 10 and found["seconds"] < 30
    assert [found[key] for key in ("wrong_code", "torn", "differ", "unheard")] == [0, 0, 0, 0]
