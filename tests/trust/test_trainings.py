"""A training that is killed at any moment ends, when resumed, as one that nothing happened to."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from safe.training.checkpoint import latest_good


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


@pytest.mark.slow
@pytest.mark.sizes(2, 20)
def test_a_process_of_two_is_lost(
    size: int, trial: Any, figure: Any, tiny_run: Any, tmp_path: Path
) -> None:
    config, silent = tiny_run.config.to_dict(), 8.0 if size < 10 else 30.0
    found = trial("processes:lose", folder=tmp_path, config=config, losses=size, silent=silent)
    figure(
        f"one process of two killed or stopped (silence of {silent:g} s): "
        "{losses} times in runs of {rows} rows, the other one ended within {slowest} s, "
        "{wrong_code} with another exit code than 4, {unnamed} without the lost one's name; "
        "{differ} resumed runs ended with other bytes than the undisturbed one".format(**found)
    )
    assert found["rows"] > 6 and found["losses"] == size and found["slowest"] < 60
    assert found["differ"] == found["unnamed"] == found["wrong_code"] == 0


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


@pytest.mark.usefixtures("in_small_world")
def test_signals_until_it_has_ended(tiny_data: Path, tmp_path: Path) -> None:
    """A signal every hundredth of a second, until nobody is left to hear it: the code stays 3."""
    run = tmp_path / "run"
    words = ["demo", "--data", str(tiny_data), "--device", "cpu", "--probe-every", "0",
             "--output", str(tmp_path), "--name", "run"]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "safe.cli", *words], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while process.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.1)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        assert process.stderr is not None
        assert process.returncode == 3, process.stderr.read()
    assert latest_good(run / "checkpoints")[0] is not None
