"""Tables for the terminal that fold what is too long, and take no text for markup."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from reports.plain import plain

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
        made.add_row(*(Text(plain(c)) if isinstance(c, str) else c for c in row))
    if not heads:
        for column in made.columns:
            column.overflow = "fold"
    return made


def mark(word: str, style: str) -> Text:
    """A glyph with its word, never broken over two lines."""
    return Text(word, style, no_wrap=True)
