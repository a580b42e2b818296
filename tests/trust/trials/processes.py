"""Trainings of two processes, one of which is lost: the other one ends, the run goes on."""

import os
import random
import shutil
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

from configs.schema import RunConfig
from safe.training import heartbeat
from trials import training
from trials.network import allow_this_machine

_PATIENCE = 600.0


def lose(
    folder: str, config: dict[str, Any], losses: int, silent: float = 30.0, seed: int = 0
) -> dict[str, float]:
    """Lose a process ``losses`` times, killed and stopped in turn; resume, compare the end."""
    allow_this_machine()
    heartbeat._SILENT_SECONDS = silent
    root, settings, choose = Path(folder), RunConfig.from_dict(config), random.Random(seed)
    assert _ends(_pair(root / "whole", settings), _PATIENCE) == [0, 0]
    whole, rows = training.results(root / "whole"), training._rows(root / "whole")
    figures: Counter[str] = Counter(losses=0, differ=0, unnamed=0, wrong_code=0)
    slowest = 0.0
    for number in range(losses):
        path, rank = root / f"cut-{number}", choose.randint(0, 1)
        pids = _pair(path, settings)
        # the last row is the score's: both have to be at work still
        _wait_for_row(path, choose.randint(1, rows - 2))
        blow = signal.SIGKILL if number % 2 == 0 else signal.SIGSTOP
        os.kill(pids[rank], blow)
        started = time.monotonic()
        code = _ends([pids[1 - rank]], _PATIENCE)[0]
        slowest = max(slowest, time.monotonic() - started)
        os.kill(pids[rank], signal.SIGKILL)
        os.waitpid(pids[rank], 0)
        figures["losses"] += 1
        figures["wrong_code"] += code != heartbeat.EXIT_LOST
        said = _said_by(path, 1 - rank).read_text()
        figures["unnamed"] += f"ProcessLost: rank {rank} (process {pids[rank]} on" not in said
        figures["differ"] += _ends(_pair(path, settings), _PATIENCE) != [0, 0]
        figures["differ"] += training.results(path) != whole
        shutil.rmtree(path)
    return {**figures, "rows": rows, "slowest": round(slowest, 1)}


def _pair(path: Path, config: RunConfig) -> list[int]:
    """Start the run at ``path``, or go on with it, in two forks; their numbers."""
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    pids = []
    goes_on = path.exists()
    for rank in range(2):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        with _said_by(path, rank).open("wb") as said:
            ours = os.dup(2)
            os.dup2(said.fileno(), 2)
            pids.append(training._train(path, config, 0.0, goes_on=goes_on))
            os.dup2(ours, 2)
            os.close(ours)
    return pids


def _said_by(path: Path, rank: int) -> Path:
    """What the newest process of a rank printed on standard error."""
    return path.with_name(f"{path.name}-{rank}.txt")


def _ends(pids: list[int], patience: float) -> list[int | None]:
    """How processes end; None for one that did not in time."""
    end, codes = time.monotonic() + patience, {}
    while len(codes) < len(pids) and time.monotonic() < end:
        for pid in pids:
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes.get(pid) for pid in pids]


def _wait_for_row(path: Path, row: int) -> None:
    end = time.monotonic() + _PATIENCE
    while training._rows(path) < row and time.monotonic() < end:
        time.sleep(0.002)
