"""A report as GitHub-style Markdown, e.g. for a pull request or a job summary."""

import re
from collections.abc import Iterable, Sequence

from configs.plain_text import plain
from probes.findings.finding import Finding
from probes.findings.view import grouped, measured, place
from reports.console import DECISIONS, GRADES, HEALTH
from reports.grade import Grade
from reports.report import Report

_SPECIAL = re.compile(r"([\\`*_\[\]<>#!|~&$])")
_ZERO_WIDTH_SPACE = "\u200b"


def markdown(report: Report) -> str:
    """Verdict, next command, signal path, criteria, findings and what is unknown."""
    verdict, run = report.verdict, report.run
    parts = [
        f"## {DECISIONS[verdict.decision][0]}: {escape(run.name)}",
        escape(verdict.reason),
        f"Next: {escape(verdict.next_step.why)}",
        fenced(verdict.next_step.command),
        "### Signal path, as last measured",
        _table(
            ("link", "health", "measured", "findings"),
            (
                (link.name, HEALTH[link.health][0], link.number, _codes(link.findings))
                for link in report.chain
            ),
        ),
        "### Criteria",
        _table(
            ("criterion", "grade", "measured", "expected"),
            (
                (o.criterion.title + " (decides)" * o.criterion.decides, GRADES[o.grade][0],
                 o.shown, str(o.criterion.condition))
                for o in report.outcomes
            ),
        ),
    ]  # fmt: skip
    if report.findings:
        parts += ["### Findings", _findings(report.findings)]
    if unknown := [o for o in report.outcomes if o.grade is Grade.UNKNOWN]:
        rows = ((o.criterion.title, run.fill(o.to_measure) or o.evidence) for o in unknown)
        parts += ["### Unknown", _table(("criterion", "what measures it"), rows)]
    return "\n\n".join(parts) + "\n"


def _findings(findings: Sequence[Finding]) -> str:
    rows = (
        (g[0].code, g[0].severity.word, place(g), g[0].title, measured(g), _remedy(g[0]))
        for g in grouped(findings)
    )
    return _table(("code", "level", "where", "finding", "measured", "remedy"), rows)


def _remedy(finding: Finding) -> str:
    cause = finding.consequence_of
    return f"a consequence of {cause}" if cause else finding.remedy


def _codes(findings: Sequence[Finding]) -> str:
    return ", ".join(dict.fromkeys(f.code for f in findings))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(text)


def escape(text: str) -> str:
    """``text`` on one line and as it reads: nothing in it is Markdown, HTML or a mention."""
    # GitHub looks for mentions after Markdown is done, where no backslash is left
    return re.sub(r"@(?=\w)", f"@{_ZERO_WIDTH_SPACE}", _SPECIAL.sub(r"\\\1", plain(text)))


def fenced(code: str) -> str:
    """A code block whose fence is longer than any run of backticks in ``code``."""
    code = plain(code)
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{code}\n{fence}"
