"""Signals that ask a run to stop: they only set a flag; the loop saves and leaves in its time."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

EXIT_INTERRUPTED = 3
"""Exit code of a command that was interrupted, saved its state and can be resumed."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
"""What schedulers send before they take a machine away, and Ctrl-C."""


class Interrupted(Exception):
    """A signal asked the run to stop; what there is is saved, the message says how to go on."""


def ignore_signals() -> None:
    """Ignore what asks to stop from now on: everything is saved, and the process is ending."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interrupt:
    """Context manager that turns SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C into a flag.

    The loop asks `requested` after each step. A second Ctrl-C raises KeyboardInterrupt. The
    handlers found at the start are put back at the end, also after an exception. Python delivers
    signals to the main thread only, so in any other thread this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether a signal arrived; stays readable after the context ends."""
        self.signal_name: str | None = None
        """The first signal that arrived, such as "SIGTERM"."""
        self._previous: dict[signal.Signals, Callable[..., Any] | int] = {}
        self._pid = 0

    def __enter__(self) -> "Interrupt":
        self.requested, self.signal_name, self._pid = False, None, os.getpid()
        self._ctrl_c_seen = False
        if threading.current_thread() is threading.main_thread():
            try:
                for number in SIGNALS:
                    self._install(number)
            except BaseException:
                self._restore()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def hear(self, name: str) -> None:
        """Take note of a signal that another process of the run got."""
        if not self.requested:
            self.requested, self.signal_name = True, name

    def heed(self, show: Callable[..., None], what_stays: str) -> Callable[..., None]:
        """Return a progress function that shows, or raises Interrupted when a signal has arrived.

        Args:
            show: the progress function.
            what_stays: what the message says of the work that is done.
        """

        def report(*args: Any) -> None:
            if self.requested:
                raise Interrupted(
                    f"{self.signal_name} received: {what_stays}; the same command goes on"
                )
            show(*args)

        return report

    def _install(self, number: signal.Signals) -> None:
        previous = signal.getsignal(number)
        if previous is not None:  # None: installed from C, and Python could not put it back
            self._previous[number] = previous
            signal.signal(number, self._handle)

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._handle_in_child(number)
            return
        if number == signal.SIGINT:
            if self._ctrl_c_seen:
                raise KeyboardInterrupt
            self._ctrl_c_seen = True
        self.hear(signal.Signals(number).name)

    @staticmethod
    def _handle_in_child(number: int) -> None:
        """In a forked data worker: die of SIGTERM as asked; leave the rest to the trainer.

        A terminal sends Ctrl-C, and a scheduler its warning, to the whole group; a worker that
        died of it would take the step away that the trainer is about to finish.
        """
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
