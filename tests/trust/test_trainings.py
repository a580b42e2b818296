"""A training that is killed at any moment ends, when resumed, as one that nothing happened to."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.sizes(1, 300)
def test_kill_9_of_the_trainer(
    size: int, trial: Any, figure: Any, tiny_run: Any, tmp_path: Path
) -> None:
    config = tiny_run.config.to_dict()
    found = trial("training:kill", folder=tmp_path, config=config, runs=size)
    figure(
        "kill -9 of the trainer, three times an epoch: {kills} kills in {runs} runs of {rows} "
        "rows, and {halfway} between two micro-batches; {differ} ended with other bytes than the "
        "undisturbed run, {restarted} begun anew".format(**found)
    )
    assert found["rows"] > 6
    assert found["differ"] == 0
    assert 0.8 * 6 * size <= found["kills"] <= 6 * size  # some were done before they were killed
    assert found["halfway"] == size


def test_random_generators_go_on_where_they_were(trial: Any, tmp_path: Path) -> None:
    assert trial("training:dropout", folder=tmp_path) == {"differ": 0}
