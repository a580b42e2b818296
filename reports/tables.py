"""Tables for the terminal that fold what is too long, and take no text for markup."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from configs.plain_text import plain

Cell = str | Text


def table(heads: Sequence[str] = (), rows: Iterable[Sequence[Cell]] = ()) -> Table:
    """A table, with a line of headings when there are ``heads``."""
    made = Table(
        box=box.SIMPLE_HEAD if heads else None,
        show_header=bool(heads),
        show_edge=False,
        padding=(0, 2, 0, 0),
    )
    for head in heads:
        made.add_column(Text(head), overflow="fold")
    for row in rows:
        made.add_row(*map(_text, row))
    if not heads:
        for column in made.columns:
            column.overflow = "fold"
    return made


@dataclass(frozen=True)
class Fitting:
    """Rows under ``heads``: a table from 60 columns on, below that an entry of lines per row.

    The first ``title`` cells of a row are the head of its entry.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= 60:
            yield table(self.heads, self.rows)
            return
        for row in self.rows:
            yield Text("  ").join(map(_text, row[: self.title]))
            named = zip(self.heads[self.title :], row[self.title :], strict=True)
            for head, cell in named:
                yield Padding(Text.assemble((f"{head} ", "dim"), _text(cell)), (0, 0, 0, 2))


def _text(cell: Cell) -> Text:
    return Text(plain(cell)) if isinstance(cell, str) else cell


def mark(word: str, style: str) -> Text:
    """A glyph with its word, never broken over two lines."""
    return Text(word, style, no_wrap=True)
