"""A data report for people: tables for the terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from configs.plain_text import plain
from safe.data.problems import REMARKS, UNUSABLE
from safe.data.report import AUDIOCAPS_LAYOUT, DataReport

_SHOWN = 20  # problem rows in the table; the JSON has them all


def render(report: DataReport) -> Group:
    """Return counts per split, counts per reason, the first problems, and the conclusion."""
    parts: list[Table | Text] = [
        _counts(report),
        *(Text(plain(f"note: {x}")) for x in report.notes),
    ]
    if report.problems:
        parts += [_reasons(report), _problems(report)]
    if report.obstacles:
        parts += [Text(plain(f"✗ {line}"), style="bold red") for line in report.obstacles]
    elif report.format == AUDIOCAPS_LAYOUT:
        parts.append(Text("✓ can be trained on and scored", style="bold green"))
    else:
        fix = f"safe-train data prepare {report.root} OUTPUT"
        parts.append(Text(plain(f"✓ nothing in the way; for training: {fix}"), style="bold green"))
    return Group(*parts)


def _counts(report: DataReport) -> Table:
    title = Text(plain(f"Data in {report.root} ({report.format})"))
    table = Table(title=title, title_justify="left")
    for name in ("split", "rows", "clips", "captions", "present", "usable", "seconds", "Hz"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in report.splits.items():
        lengths = split.seconds
        numbers = (split.rows, split.clips, split.captions, split.present, split.usable)
        table.add_row(
            Text(plain(name)),
            *(f"{number:,}" for number in numbers),
            f"{lengths[0]:.1f}-{lengths[-1]:.1f}" if lengths else "-",
            ", ".join(map(str, split.rates)) or "-",
        )
    return table


def _reasons(report: DataReport) -> Table:
    table = Table(title="Problems by reason", title_justify="left")
    table.add_column("reason")
    for name in report.splits:
        table.add_column(Text(plain(name)), justify="right")
    table.add_column("meaning")
    for reason, meaning in (UNUSABLE | REMARKS).items():
        counts = [
            sum(row.reason == reason and row.split == name for row in report.problems)
            for name in report.splits
        ]
        if any(counts):
            style = "red" if reason in UNUSABLE or reason.startswith("shared") else "yellow"
            cells = (f"{count:,}" if count else "" for count in counts)
            table.add_row(Text(reason, style=style), *cells, meaning)
    return table


def _problems(report: DataReport) -> Table:
    table = Table(title_justify="left")
    total = len(report.problems)
    table.title = f"Problems (first {_SHOWN} of {total:,}; --json gives all)"
    if total <= _SHOWN:
        table.title = f"Problems ({total:,})"
    for name in ("split", "clip", "reason", "detail"):
        table.add_column(name, overflow="fold")
    for row in report.problems[:_SHOWN]:
        # Text, not markup: an id may hold square brackets.
        table.add_row(
            *(Text(plain(cell)) for cell in (row.split, row.clip, row.reason, row.detail))
        )
    return table
