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
