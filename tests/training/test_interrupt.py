"""Signals only set a flag, and the handlers found before are there afterwards."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safe.training.interrupt import EXIT_INTERRUPTED, SIGNALS, Interrupt

NAMES = [number.name for number in SIGNALS]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    before = handlers()
    yield
    assert handlers() == before


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_sets_the_flag_and_nothing_else(name: str) -> None:
    with Interrupt() as interrupt:
        assert not interrupt.requested and interrupt.signal_name is None
        send(signal.Signals[name])
        assert interrupt.requested
    assert interrupt.signal_name == name
    assert EXIT_INTERRUPTED == 3


def test_the_first_signal_keeps_the_name() -> None:
    with Interrupt() as interrupt:
        for name in ("SIGUSR1", "SIGTERM", "SIGTERM", "SIGINT"):
            send(signal.Signals[name])
    assert interrupt.signal_name == "SIGUSR1"


def test_second_ctrl_c_raises_and_restores() -> None:
    before, interrupt = handlers(), Interrupt()

    def press_twice() -> None:
        with interrupt:
            send(signal.SIGINT)
            assert interrupt.requested
            send(signal.SIGINT)
            pytest.fail("not reached")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert interrupt.requested and handlers() == before


def test_own_handlers_return_after_an_exception() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with pytest.raises(RuntimeError), Interrupt():
            raise RuntimeError(signal.getsignal(signal.SIGUSR1))
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_failing_start_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    original, before = signal.signal, handlers()

    def fail_at_int(number: int, handler: Any) -> Any:
        if number == signal.SIGINT and callable(handler) and handler is not before[-1]:
            raise OSError("refused")
        return original(number, handler)

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", fail_at_int)
        with pytest.raises(OSError, match="refused"), Interrupt():
            pytest.fail("not reached")
    assert handlers() == before


def test_used_again_it_starts_anew_and_nests() -> None:
    interrupt = Interrupt()
    with interrupt:
        send(signal.SIGTERM)
    with interrupt:
        assert not interrupt.requested
        with Interrupt() as inner:
            send(signal.SIGTERM)
        assert inner.requested and not interrupt.requested


def test_in_another_thread_it_is_inert() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append((handlers() == before, interrupt.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, False)]


def send_and_wait(number: signal.Signals, seconds: float) -> None:
    send(number)
    time.sleep(seconds)


def exit_code_of_child(number: signal.Signals, seconds: float) -> int | None:
    child = multiprocessing.get_context("fork").Process(
        target=send_and_wait, args=(number, seconds)
    )
    child.start()
    child.join(20)
    return child.exitcode


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_dies_of_sigterm_but_not_of_ctrl_c() -> None:
    with Interrupt() as interrupt:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            assert exit_code_of_child(number, 0) == 0
        assert exit_code_of_child(signal.SIGTERM, 20) == -signal.SIGTERM
        assert not interrupt.requested


LOOP = textwrap.dedent("""
    import sys, time
    from safe.training.interrupt import EXIT_INTERRUPTED, Interrupt

    with Interrupt() as interrupt:
        print("ready", flush=True)
        for step in range(1000):
            time.sleep(0.02)
            if interrupt.requested:
                print(interrupt.signal_name, flush=True)
                sys.exit(EXIT_INTERRUPTED)
""")


@pytest.mark.parametrize("name", NAMES)
def test_a_program_leaves_with_3(name: str, repo_root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOOP],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repo_root)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.Signals[name])
        assert process.stdout.read() == f"{name}\n"
        assert process.wait(20) == EXIT_INTERRUPTED
