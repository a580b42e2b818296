"""What a person sees while something runs: rich in a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text
from typing_extensions import override

from configs.plain_text import plain_lines
from safe.slurm import is_first

_PLAIN_SECONDS = 10.0
"""Least time between two plain progress lines."""


class Show(Protocol):
    """Shows how far something is."""

    def __call__(self, done: int, total: int, exactly: str = "") -> None:
        """Show that ``done`` of ``total`` are done."""


class PlainConsole(Console):
    """Shows text from data as it is: no markup, no emoji codes, and escaped what steers a terminal.

    A ``Text`` has lost some control characters by then: give it :func:`configs.plain_text.plain`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain_lines(text), **options)

    @override
    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            own = bool(segment.control)  # rich's: cursor, colours
            yield segment if own else segment._replace(text=plain_lines(segment.text))


def make_console(*, quiet: bool = False) -> Console:
    """A console for standard output; without colour or cursor tricks when that is no terminal.

    Silent in all processes of a distributed run but the first.
    """
    return PlainConsole(quiet=quiet or not is_first(), soft_wrap=True)


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
            TextColumn("{task.description}", markup=False),
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
