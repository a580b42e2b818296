"""What a person sees while something runs: rich in a terminal, plain lines elsewhere."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS = 10.0
"""Least time between two plain progress lines."""


class Show(Protocol):
    """Shows how far something is."""

    def __call__(self, done: int, total: int, exactly: str = "") -> None:
        """Show that ``done`` of ``total`` are done."""


def make_console(*, quiet: bool = False) -> Console:
    """A console for standard output; without colour or cursor tricks when that is no terminal.

    Silent in all processes of a distributed run but the first, which torchrun numbers in RANK.
    """
    secondary = os.environ.get("RANK", "0") != "0"
    return Console(quiet=quiet or secondary, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, what: str) -> Iterator["Show"]:
    """Show how far something is.

    Args:
        console: where to.
        what: a few words on what is being done.

    Yields:
        A function to call with (done, total) and, where it varies, a few words on what exactly.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=None)

            def update(done: int, total: int, exactly: str = "") -> None:
                bar.update(task, completed=done, total=total, description=f"{what} {exactly}")

            yield update
        return
    last = time.monotonic()

    def plain(done: int, total: int, exactly: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_SECONDS:
            last = time.monotonic()
            console.print(f"{what} {exactly}".rstrip() + f": {done} of {total}", markup=False)

    yield plain
