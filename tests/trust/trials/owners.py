"""Runs that want the same folder, and owners that died."""

import os
import signal
from collections import Counter
from pathlib import Path

from configs.errors import CheckpointError
from safe.training.run_directory import RunDirectory


def fight(folder: str, rounds: int) -> dict[str, int]:
    """An owner holds a run, a second process wants it; then the owner is killed, and it may."""
    run = RunDirectory.create(Path(folder), "run", {"name": "fight"})
    run.close()
    figures: Counter[str] = Counter(two_owners=0, unnamed=0, not_recovered=0, no_winner=0)
    for _ in range(rounds):
        owner, word = _wanting(run.path)
        assert word == "", word
        second, word = _wanting(run.path)
        figures["two_owners"] += word == ""
        figures["unnamed"] += f"process {owner} on {os.uname().nodename}" not in word
        _kill(second)
        _kill(owner)
        third, word = _wanting(run.path)
        figures["not_recovered"] += word != ""
        _kill(third)
        both = [_start(run.path) for _ in range(2)]
        words = [_word(reading) for _, reading in both]
        figures["two_owners"] += words == ["", ""]
        figures["no_winner"] += "" not in words
        for pid, _ in both:
            _kill(pid)
    return {"rounds": rounds, **figures}


def _start(path: Path) -> tuple[int, int]:
    """A fork that takes the run and keeps it until it is killed; its number and its pipe."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        holding: RunDirectory | None = None
        try:
            holding = RunDirectory.open(path)
        except CheckpointError as error:
            os.write(writing, str(error).encode())
        os.close(writing)
        signal.pause()
        os._exit(holding is None)
    os.close(writing)
    return pid, reading


def _word(reading: int) -> str:
    """Why a fork did not get the run; "" when it did."""
    with open(reading, "rb") as pipe:
        return pipe.read().decode()


def _wanting(path: Path) -> tuple[int, str]:
    pid, reading = _start(path)
    return pid, _word(reading)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
