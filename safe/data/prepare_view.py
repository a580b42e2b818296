"""The result of `data prepare` for people: what there is, what is missing, what is doubled."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from configs.claims import AUDIOCAPS_TEST_SIZES
from configs.plain_text import plain
from safe.data.prepared import Prepared
from safe.data.problems import UNUSABLE

_SHOWN = 10  # leaking clips that are listed; prepared.json has them all


def render(result: Prepared) -> Group:
    """Return what was recognised, counts per split, losses, leakage, and the conclusion."""
    parts: list[Table | Text] = [Text(plain(f"recognised as {result.format}: {result.source}"))]
    parts += [Text(plain(f"note: {note}")) for note in result.notes]
    parts += [_counts(result), *(Text(plain(line)) for line in _losses(result))]
    common = [twin for twin in result.twins if not twin.leaks]
    if common:
        parts.append(
            Text(
                f"{len(common):,} clips are in common with other data sets without spoiling a score"
            )
        )
    for twin in result.leakage[:_SHOWN]:
        where = f"{twin.other_split} of {twin.folder}" if twin.folder else twin.other_split
        line = f"  {twin.split} {twin.clip} = {where} {twin.other} (by {twin.by})"
        parts.append(Text(plain(line)))
    if len(result.leakage) > _SHOWN:
        parts.append(Text(f"  ... and {len(result.leakage) - _SHOWN:,} more in prepared.json"))
    parts += [Text(plain(f"✗ {line}"), style="bold red") for line in result.obstacles]
    if not result.obstacles:
        n = ", ".join(f"{count.usable:,} {name}" for name, count in result.splits.items())
        parts.append(Text(plain(f"✓ N = {n} clips in {result.output}"), style="bold green"))
    return Group(*parts)


def _counts(result: Prepared) -> Table:
    table = Table(title=Text(plain(f"Prepared in {result.output}")), title_justify="left")
    for name in ("split", "rows", "clips", "captions", "with sound", "missing", "usable (N)"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, count in result.splits.items():
        missing = count.clips - count.present
        numbers = (count.rows, count.clips, count.captions, count.present, missing, count.usable)
        table.add_row(Text(plain(name)), *(f"{number:,}" for number in numbers))
    return table


def _losses(result: Prepared) -> list[str]:
    lines = []
    for name, count in result.splits.items():
        for reason, number in count.reasons.items():
            lines.append(f"{name}: {number:,} of {count.clips:,} {reason}: {UNUSABLE[reason]}")
    test = result.splits.get("test")
    if test and test.usable and result.audiocaps_test == test.usable:
        size = AUDIOCAPS_TEST_SIZES.get(test.usable)
        whole = max(AUDIOCAPS_TEST_SIZES)
        sizes = " or ".join(map(str, AUDIOCAPS_TEST_SIZES))
        lines.append(
            f"test: {test.usable} of AudioCaps' {whole} test clips: "
            + (size or f"published scores are over {sizes}, so yours will not be comparable")
        )
    if any("missing" in count.reasons for count in result.splits.values()):
        lines.append("clips vanish from the web, so losses are normal; give N with every score")
    return lines
