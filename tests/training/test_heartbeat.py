"""A process that is killed, stopped or fails ends the others, by name; a slow one ends nobody.

Run by itself with a folder this file forks three processes for each trial, so that torch is
imported once, and leaves there how each of them ended, as JSON, and what they printed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from safe.training import heartbeat
from safe.training.heartbeat import EXIT_LOST, Heartbeat
from safe.training.interrupt import Interrupt

SILENT = 6.0
"""Seconds instead of 30, so that a stopped process is found sooner."""


def wait_for_all() -> None:
    dist.all_reduce(torch.ones(1))


def is_killed(victim: bool, interrupt: Interrupt) -> None:
    if victim:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_all()


def is_stopped(victim: bool, interrupt: Interrupt) -> None:
    if victim:
        os.kill(os.getpid(), signal.SIGSTOP)
    wait_for_all()


def fails(victim: bool, interrupt: Interrupt) -> None:
    if victim:
        raise ValueError("no such \x1b[31mclip")
    wait_for_all()


def is_slow(victim: bool, interrupt: Interrupt) -> None:
    until = time.monotonic() + (1.5 * SILENT if victim else 0)
    while time.monotonic() < until:
        sum(range(1000))
    wait_for_all()


def gets_a_signal(victim: bool, interrupt: Interrupt) -> None:
    if victim:
        os.kill(os.getpid(), signal.SIGUSR1)
    until = time.monotonic() + 30
    while not interrupt.requested and time.monotonic() < until:
        time.sleep(0.01)
    assert interrupt.signal_name == "SIGUSR1"


def leaves_early(victim: bool, interrupt: Interrupt) -> None:
    time.sleep(0 if victim else 3)


CASES = {f.__name__: f for f in (
    is_killed, is_stopped, fails, is_slow, gets_a_signal, leaves_early
)}  # fmt: skip


TRIALS = [
    ("is_killed", 2), ("is_killed", 0), ("is_stopped", 1), ("is_stopped", 0), ("fails", 1),
    ("is_slow", 1), ("gets_a_signal", 1), ("leaves_early", 1),
]  # fmt: skip


def side_by_side(folder: Path) -> None:
    """All trials at once, because most of a trial is waiting."""
    servers = [socket.create_server(("localhost", 0)) for _ in TRIALS]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    for number, ((case, victim), port) in enumerate(zip(TRIALS, ports, strict=True)):
        if os.fork() == 0:
            with (folder / f"{number}.txt").open("wb") as text:
                os.dup2(text.fileno(), 2)
            (folder / f"{number}.json").write_text(json.dumps(three(case, victim, port)))
            os._exit(0)
    for _ in TRIALS:
        os.wait()


def three(case: str, victim: int, port: int) -> dict[int, Any]:
    """Exit code and seconds of each of three processes; the victim is released at the end."""
    os.environ.update(WORLD_SIZE="3", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    heartbeat._SILENT_SECONDS = SILENT
    started, found, ranks = time.monotonic(), {}, {}
    for rank in range(3):
        os.environ["RANK"] = str(rank)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                dist.init_process_group("gloo", timeout=timedelta(days=1))
                with Interrupt() as interrupt, Heartbeat(interrupt):
                    CASES[case](rank == victim, interrupt)
                code = 0
            finally:
                os._exit(code)
        ranks[pid] = rank
    while ranks:
        pid, status = os.waitpid(-1, 0)
        rank = ranks.pop(pid)
        found[rank] = os.waitstatus_to_exitcode(status), round(time.monotonic() - started, 1)
        if list(ranks.values()) == [victim] and case == "is_stopped":
            os.kill(next(iter(ranks)), signal.SIGKILL)
    return found


Ends = Callable[[str, int], tuple[dict[int, tuple[int, float]], str]]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """ends(case, victim) -> exit code and seconds by rank, and what was printed."""
    folder = tmp_path_factory.mktemp("trials")
    subprocess.run(
        [sys.executable, __file__, folder], timeout=500, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def look(case: str, victim: int) -> tuple[dict[int, tuple[int, float]], str]:
        number = TRIALS.index((case, victim))
        found = json.loads((folder / f"{number}.json").read_text())
        text = (folder / f"{number}.txt").read_text()
        return {int(rank): tuple(how) for rank, how in found.items()}, text

    return look


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "victim", "says"),
    [("is_killed", 2, "is gone: killed"), ("is_killed", 0, "is gone: killed"),
     ("is_stopped", 1, "has not answered for 6 s: stopped"),
     ("is_stopped", 0, "has not answered for 6 s: stopped"),
     ("fails", 1, r"stopped with ValueError: no such \x1b[31mclip")],
)  # fmt: skip
def test_a_lost_process_ends_the_others_by_name(
    case: str, victim: int, says: str, ends: Ends
) -> None:
    found, text = ends(case, victim)
    code = 1 if case == "fails" else -signal.SIGKILL
    for rank, (how, seconds) in found.items():
        assert how == (code if rank == victim else EXIT_LOST), text
        assert seconds < 60
    lines = [line for line in text.splitlines() if line.startswith("ProcessLost: ")]
    assert len(lines) == 2  # one per survivor, and all name the same
    for line in lines:
        assert line.startswith(f"ProcessLost: rank {victim} (process ") and says in line
        assert "What was saved is good: go on with --resume" in line


@pytest.mark.slow
@pytest.mark.parametrize("case", ["is_slow", "gets_a_signal", "leaves_early"])
def test_a_healthy_process_ends_nobody(case: str, ends: Ends) -> None:
    found, text = ends(case, 1)
    assert [code for code, _ in found.values()] == [0, 0, 0], text


@pytest.mark.parametrize("said", [b"", b"\0", b"\0\0\0\1x", b"x" * 20, b"\x7f\xff\xff\xff" * 9])
def test_a_stranger_holds_nobody_up(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody on the network can call; only who knows the run's token is listened to."""
    monkeypatch.setattr(heartbeat.processes, "count", lambda: 2)
    monkeypatch.setattr(heartbeat.processes, "rank", lambda: 1)
    monkeypatch.setattr(heartbeat, "_GOODBYE_SECONDS", 0.3)
    token, started = b"t" * 16, time.monotonic()
    with heartbeat._listen() as server:
        address = ("localhost", server.getsockname()[1])
        with socket.create_connection(address) as stranger:
            stranger.sendall(said)
            ours = heartbeat._call(address, token)
            peers = heartbeat._answer(server, token)
    assert list(peers) == [1] and time.monotonic() - started < 10
    peers[1].send_bytes(b"hello")
    assert ours.recv_bytes() == b"hello"
    ours.close()
    peers[1].close()


def test_one_process_needs_no_heartbeat() -> None:
    interrupt = Interrupt()
    with Heartbeat(interrupt) as beat:
        assert beat._thread is None
    with pytest.raises(ValueError, match="mine"), Heartbeat(interrupt):
        raise ValueError("mine")


if __name__ == "__main__":
    side_by_side(Path(sys.argv[1]))
