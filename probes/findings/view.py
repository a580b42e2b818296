"""Findings for people: rich renderables for the terminal, HTML for a notebook."""

import html
from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from configs.plain_text import plain
from probes.findings.finding import Finding, Severity
from probes.findings.judge import Verdict

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def render(findings: Sequence[Finding], not_measured: Mapping[str, str]) -> RenderableType:
    """Verdict, findings (equal ones of several layers together) and what was not measured."""
    verdict = Verdict.of(findings)
    style = "bold green" if verdict.severity is None else STYLES[verdict.severity]
    parts: list[RenderableType] = [Text.assemble("verdict: ", (str(verdict), style))]
    parts += [_entry(group) for group in grouped(findings)]
    parts += [
        Text(plain(f"not measured: {name}: {why}"), "dim") for name, why in not_measured.items()
    ]
    return Group(*parts)


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Neighbours with the same code, component and severity together."""
    key = lambda f: (f.code, f.component, f.severity, f.consequence_of or "")  # noqa: E731
    ordered = list(dict.fromkeys(map(key, findings)))
    by_key = sorted(findings, key=lambda f: ordered.index(key(f)))
    return [list(members) for _, members in groupby(by_key, key)]


def place(group: Sequence[Finding]) -> str:
    """The component of a group, and all its layers."""
    layers = [str(f.layer) for f in group if f.layer is not None]
    if not layers:
        return group[0].component
    return f"{group[0].component} @ layer{'s' * (len(layers) > 1)} {', '.join(layers)}"


def measured(group: Sequence[Finding]) -> str:
    """What was measured; by layer when there are several and they differ."""
    if len({f.measured for f in group}) == 1:
        return group[0].measured
    return "; ".join(f"{f.layer}: {f.measured}" for f in group)


def _entry(group: Sequence[Finding]) -> RenderableType:
    first = group[0]
    style = STYLES[first.severity]
    head = Text.assemble(
        "\n",
        (f"{first.code} {first.severity.word}", style),
        plain(f"  {place(group)}: {first.title}"),
    )
    if first.consequence_of:
        head.append(f"  (a consequence of {first.consequence_of}, it may go away with it)", "dim")
        return Group(head, Padding(Text(plain(f"measured  {measured(group)}")), (0, 0, 0, 2)))
    lines = {
        "measured": measured(group),
        "expected": first.expected,
        "why": first.why,
        "remedy": first.remedy,
    }
    body = Text("\n").join(Text.assemble((f"{k:<9} ", "dim"), plain(v)) for k, v in lines.items())
    return Group(head, Padding(body, (0, 0, 0, 2)))


def as_html(findings: Sequence[Finding], not_measured: Mapping[str, str]) -> str:
    """The same as a small table; every text is escaped."""
    rows = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in (
            group[0].code, group[0].severity.word, place(group), group[0].title, measured(group),
            f"consequence of {group[0].consequence_of}" if group[0].consequence_of
            else group[0].remedy,
        )) + "</tr>"
        for group in grouped(findings)
    )  # fmt: skip
    heads = ("code", "severity", "where", "finding", "measured", "remedy")
    header = "".join(f"<th style='text-align:left'>{head}</th>" for head in heads)
    missing = "".join(
        f"<p>not measured: {html.escape(name)}: {html.escape(why)}</p>"
        for name, why in not_measured.items()
    )
    table = f"<table><tr>{header}</tr>{rows}</table>" if rows else ""
    return f"<p><b>{html.escape(str(Verdict.of(findings)))}</b></p>{table}{missing}"
