"""The rows as one table in Markdown."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.case_study.variants import VARIANTS

Row = dict[str, Any]
_HEAD = (
    "run", "seeds", "dtype", "CIDEr", "heard", "unheard", "another's audio", "first loss",
    "last loss", "contribution before", "probes before", "probes after", "verdict", "gap",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """A line per variant: means over its seeds, and the extremes where there are several.

    ``dtype``: of the frozen backbone; ``contribution before``: of the fusion layers before the
    first step, least to most; ``probes before`` and ``probes after`` the training: all findings
    but notes, root causes in bold; ``gap``: what another clip's audio costs on validation clips
    at the end, nats/token.
    """
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    for name, variant in VARIANTS.items():
        found = [row for row in rows if row["variant"] == name]
        if found:
            lines.append(_line([variant.title, *_cells(found)]))
    return "\n".join(lines)


def _cells(rows: Sequence[Row]) -> list[str]:
    layers = [value for row in rows for value in row["before"]["contribution"].values()]
    return [
        str(len(rows)),
        _every(row["dtype"] for row in rows),
        _score(rows, "cider"),
        _score(rows, "heard"),
        _score(rows, "unheard"),
        f"{fmean(row['controls'][ANOTHER] for row in rows):.1f}",
        f"{fmean(row['first_loss'] for row in rows):.1f}",
        f"{fmean(row['last_loss'] for row in rows):.2f}",
        f"{min(layers):.2g} to {max(layers):.2g}" if layers else _UNKNOWN,
        _findings([row["before"] for row in rows]),
        _findings([row["after"] for row in rows]),
        _every(row["verdict"] for row in rows),
        _gap([row["after"]["influence"] for row in rows]),
    ]


ANOTHER = "another clip's audio"
_UNKNOWN = "not measured"


def _findings(judged: Sequence[Row]) -> str:
    """Codes, the root causes first and in bold; ``(1 of 3)`` for what not all seeds had."""
    roots = {found["root"] for found in judged}
    codes = Counter(code for found in judged for code in found["findings"])
    shown = []
    for code in sorted(codes, key=lambda code: (code not in roots, code)):
        part = "" if codes[code] == len(judged) else f" ({codes[code]} of {len(judged)})"
        shown.append(f"**{code}**{part}" if code in roots else f"{code}{part}")
    return ", ".join(shown) or "fine"


def _gap(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]  # a blind run has no other audio
    if len(known) < len(values):
        return _UNKNOWN
    extremes = f" ({min(known):.2f} to {max(known):.2f})" if len(known) > 1 else ""
    return f"{fmean(known):.2f}{extremes}"


def _score(rows: Sequence[Row], part: str) -> str:
    values = [row[part]["value"] for row in rows]
    if len(values) == 1:
        low, high = rows[0][part]["interval"]
        return f"{values[0]:.0f} [{low:.0f}, {high:.0f}]"
    return f"**{fmean(values):.0f}** ({min(values):.0f} to {max(values):.0f})"


def _every(words: Any) -> str:
    return ", ".join(dict.fromkeys(words))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
