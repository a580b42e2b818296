"""A comparison for the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from configs.plain_text import plain
from probes.findings.finding import Finding
from probes.findings.view import STYLES, grouped, measured, place
from reports.compare import Comparison, Curve, Side
from reports.console import GRADES
from reports.grade import Grade
from reports.sparkline import sparkline
from reports.tables import Cell, Fitting, table


def comparison_view(comparison: Comparison) -> RenderableType:
    """Runs by letter; then scores, settings, criteria, findings and curves."""
    sides = comparison.sides
    letters = [_letter(i) for i in range(len(sides))]
    rows = ((f"{a}  ", s.name, s.decision) for a, s in zip(letters, sides, strict=True))
    sections: list[tuple[str, RenderableType]] = [
        ("Runs", table((), rows)),
        ("Scores (CIDEr, 95% intervals)", _scores(letters, sides)),
        (f"Settings that differ ({' | '.join(letters)})", _settings(comparison)),
        ("Criteria", _criteria(letters, comparison)),
        ("Findings", _findings(letters, sides)),
        ("Curves", _curves(letters, sides)),
    ]
    parts: list[RenderableType] = []
    for title, body in sections:
        parts += [Text(f"\n{title}" if parts else title, "bold"), Padding(body, (0, 0, 0, 2))]
    return Group(*parts)


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _scores(letters: Sequence[str], sides: Sequence[Side]) -> RenderableType:
    lines = []
    for letter, side in zip(letters, sides, strict=True):
        lines.append(Text.assemble((f"{letter}  ", "bold"), plain(_score(side))))
        if side.difference is not None:
            d = side.difference
            lines.append(
                Text(
                    f"   {letter} - A = {d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}] over {d.clips} "
                    f"clips: {d.word}"
                )
            )
        elif side.not_comparable:
            lines.append(Text(plain(f"   not comparable with A: {side.not_comparable}"), "yellow"))
    return Group(*lines)


def _score(side: Side) -> str:
    if side.cider is None:
        return "not evaluated"
    interval = "" if side.interval is None else " [{:.1f}, {:.1f}]".format(*side.interval)
    wrong = "" if side.shuffled is None else f", another clip's audio {side.shuffled:.1f}"
    return f"{side.cider:.1f}{interval}{wrong} ({side.split}, {side.clips} clips)"


def _settings(comparison: Comparison) -> RenderableType:
    lines = (
        Text.assemble((f"{key}  ", "dim"), plain(" | ".join(map(_value, values))))
        for key, values in comparison.settings.items()
    )
    return Group(*lines) if comparison.settings else Text("none")


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _criteria(letters: Sequence[str], comparison: Comparison) -> RenderableType:
    unknown, rows = [], list[list[Cell]]()
    for title, row in comparison.criteria.items():
        if {grade for grade, _ in row} == {Grade.UNKNOWN.value}:
            unknown.append(title)
        else:
            rows.append([title, *(_graded(grade, shown) for grade, shown in row)])
    told = Text(plain(f"unknown in all: {'; '.join(unknown)}" if unknown else ""), "dim")
    return Group(Fitting(("criterion", *letters), rows), told)


def _graded(grade: str, shown: str) -> Text:
    return Text.assemble(GRADES[Grade(grade)], "" if grade == "UNKNOWN" else plain(f" {shown}"))


def _findings(letters: Sequence[str], sides: Sequence[Side]) -> RenderableType:
    lines = []
    for letter, side in zip(letters, sides, strict=True):
        lines += [_finding(f"new in {letter}", group) for group in grouped(side.gained)]
        lines += [_finding(f"gone in {letter}", group) for group in grouped(side.lost)]
    if not lines:
        lines.append(Text("none gained, none lost"))
    everything = {name for side in sides for name in side.probes}
    for letter, side in zip(letters, sides, strict=True):
        if missing := sorted(everything.difference(side.probes)):
            told = f"{letter} was not looked at by the probes {', '.join(missing)}"
            lines.append(Text(plain(told), "yellow"))
    return Group(*lines)


def _finding(word: str, group: Sequence[Finding]) -> Text:
    first = group[0]
    return Text.assemble(
        f"{word}  ", (f"{first.code} {first.severity.word}", STYLES[first.severity]),
        plain(f"  {place(group)}: {first.title} ({measured(group)})"),
    )  # fmt: skip


def _curves(letters: Sequence[str], sides: Sequence[Side]) -> RenderableType:
    rows = []
    for letter, side in zip(letters, sides, strict=True):
        rows.append((f"{letter}  loss", *_curve(side.loss)))
        rows.append(("   CIDEr", *_curve(side.cider_curve)))
    return table((), rows)


def _curve(curve: Curve) -> tuple[str, str]:
    if not curve:
        return "", "none"
    (_, first), (epoch, last) = curve[0], curve[-1]
    return sparkline([y for _, y in curve]), f"{first:.3g} -> {last:.3g} at epoch {epoch:.3g}"
