"""What a person sees while something runs: rich in a terminal, plain lines elsewhere."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS = 10.0
"""Least time between two plain progress lines."""


def make_console(*, quiet: bool = False) -> Console:
    """A console for standard output; without colour or cursor tricks when that is no terminal.

    Silent in all processes of a distributed run but the first, which torchrun numbers in RANK.
    """
    secondary = os.environ.get("RANK", "0") != "0"
    return Console(quiet=quiet or secondary, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far something is.

    Args:
        console: where to.
        what: a few words on what is being done.

    Yields:
        A function to call with (done, total).
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
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def plain(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_SECONDS:
            last = time.monotonic()
            console.print(f"{what}: {done} of {total}")

    yield plain
