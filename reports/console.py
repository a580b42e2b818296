"""A report for the terminal: 80 columns are enough, and colour says nothing that words do not."""

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from configs.plain_text import plain
from probes.findings.finding import Finding, Severity
from probes.findings.view import STYLES, grouped, measured, place
from reports.chain import ChainLink, Health
from reports.claims import AGREES, NOT_MEASURED, OFF
from reports.criterion import Outcome
from reports.grade import Grade
from reports.report import Report
from reports.tables import Fitting, mark, table
from reports.verdict import Decision

HEALTH = {
    Health.OK: ("✔ ok", "green"),
    Health.DOUBTFUL: ("! doubtful", "yellow"),
    Health.BROKEN: ("✘ BROKEN", "bold red"),
    Health.UNKNOWN: ("? unknown", "dim"),
}
GRADES = {
    Grade.PASS: ("✔ PASS", "green"),
    Grade.PARTIAL: ("~ PARTIAL", "yellow"),
    Grade.FAIL: ("✘ FAIL", "bold red"),
    Grade.UNKNOWN: ("? UNKNOWN", "dim"),
}
_ROOT = {Health.BROKEN: " <- earliest broken link", Health.DOUBTFUL: " <- look here first"}
DECISIONS = {
    Decision.PROCEED: ("✔ PROCEED", "bold green"),
    Decision.PARTIAL: ("~ PARTIAL", "bold yellow"),
    Decision.UNFINISHED: ("? UNFINISHED", "bold"),
    Decision.BLOCKED: ("✘ BLOCKED", "bold red"),
}


class Command(Text):
    """A command line: printed whole, so that it can be copied; the terminal may break it."""


def print_report(report: Report, console: Console) -> None:
    """Print the page; the next command is the last line."""
    for part in page(report):
        console.print(part, soft_wrap=isinstance(part, Command))


def quiet_line(report: Report) -> str:
    """Decision, reason in short, and the next command on one line."""
    verdict = report.verdict
    reason = plain(verdict.reason)
    short = reason if len(reason) <= 160 else f"{reason[:157].rstrip()}..."
    return f"{verdict.decision.name}: {short} | next: {plain(verdict.next_step.command)}"


def page(report: Report) -> Iterator[RenderableType]:
    """Verdict, signal path, criteria, findings, claims, what is not known yet, next command."""
    yield _verdict(report)
    yield from _section("Signal path, as last measured", _chain(report.chain))
    for decides, title in (
        (True, "Criteria that decide"),
        (False, "Criteria that explain, and decide nothing"),
    ):
        rows = [o for o in report.outcomes if o.criterion.decides is decides]
        yield from _section(title, _criteria(rows))
    yield from _section("Findings", _findings(report.findings))
    yield from _claims(report)
    if report.run.damaged:
        lines = (f"{name}: {why}" for name, why in report.run.damaged.items())
        yield from _section("Damaged files", Group(*(Text(plain(line)) for line in lines)))
    yield from _unknown(report)
    yield from _next(report)


def _section(title: str, body: RenderableType) -> Iterator[RenderableType]:
    yield Text(f"\n{title}", "bold")
    yield Padding(body, (0, 0, 0, 2))


def _verdict(report: Report) -> RenderableType:
    run, verdict = report.run, report.verdict
    word, style = DECISIONS[verdict.decision]
    at = f"checkpoint of step {run.checkpoint}" if run.checkpoint else f"step {run.last_step}"
    state = "" if run.finished or run.checkpoint else ", not finished"
    return Panel(
        Text(plain(verdict.reason)),
        title=Text.assemble((word, style), "  ", plain(run.name)),
        subtitle=Text(f"{at}, epoch {run.epochs_done:.1f}{state}", "dim"),
        title_align="left",
        subtitle_align="right",
        border_style=style,
    )


def _chain(links: Sequence[ChainLink]) -> RenderableType:
    return table(rows=((mark(*HEALTH[link.health]), link.name, _about(link)) for link in links))


def _about(link: ChainLink) -> Text:
    about = [Text(plain(link.number))] if link.number else []
    if link.findings:
        codes = ", ".join(dict.fromkeys(f.code for f in link.findings))
        about.append(Text(f"{codes}{_ROOT[link.health] if link.root else ''}", "bold"))
    return Text("; ").join(about)


def _criteria(outcomes: Sequence[Outcome]) -> RenderableType:
    rows = [
        (mark(*GRADES[o.grade]), o.criterion.title, o.shown, str(o.criterion.condition))
        for o in outcomes
    ]
    return Fitting(("grade", "criterion", "measured", "expected"), rows, title=2)


def _findings(findings: Sequence[Finding]) -> RenderableType:
    if not findings:
        return Text("none")
    return Group(*(_entry(group) for group in grouped(findings)))


def _entry(group: Sequence[Finding]) -> RenderableType:
    first = group[0]
    head = Text.assemble(
        (f"{first.code} {first.severity.word}", STYLES[first.severity]),
        plain(f"  {place(group)}: {first.title}"),
    )
    lines = {"measured": measured(group)}
    if first.consequence_of:
        head.append(f" (a consequence of {first.consequence_of})", "dim")
    elif first.severity > Severity.NOTE:
        lines |= {"expected": first.expected, "remedy": first.remedy}
    body = table(rows=((Text(name, "dim"), text) for name, text in lines.items()))
    return Group(head, Padding(body, (0, 0, 0, 2)))


def _claims(report: Report) -> Iterator[RenderableType]:
    """Which claims are off, by name: they are about the plan, and the same for every run."""
    yield Text("\nClaims of the plan", "bold")
    for word, verdict in (("off", OFF), ("agree", AGREES), ("not measured here", NOT_MEASURED)):
        names = [claim.name for claim in report.claims if claim.verdict == verdict]
        told = f": {'; '.join(names)}" if verdict == OFF else ""
        yield Padding(Text(plain(f"{len(names)} {word}{told}")), (0, 0, 0, 2))
    yield Text("  Each with what is known of it, and from where:", "dim")
    yield Command(f"    {plain(report.run.fill('safe-probe report RUN --html'))}")


def _unknown(report: Report) -> Iterator[RenderableType]:
    by_command: dict[str, list[Outcome]] = {}
    for outcome in report.outcomes:
        if outcome.grade is Grade.UNKNOWN:
            by_command.setdefault(report.run.fill(outcome.to_measure), []).append(outcome)
    if by_command:
        yield Text("\nUnknown, and what measures it", "bold")
    for how, outcomes in by_command.items():
        yield Padding(Group(*map(_why_unknown, outcomes)), (0, 0, 0, 2))
        if how:
            yield Command(f"    {plain(how)}")


def _why_unknown(outcome: Outcome) -> Text:
    why = "" if outcome.evidence == outcome.shown else f": {outcome.evidence}"
    return Text(plain(f"{outcome.criterion.title}{why}"))


def _next(report: Report) -> Iterator[RenderableType]:
    ticked = sum(item.grade is Grade.PASS for item in report.checklist)
    yield Text(f"\nChecklist: {ticked} of {len(report.checklist)} ticked, see", "dim")
    yield Command(f"    {plain(report.run.fill('safe-probe checklist RUN'))}")
    step = report.verdict.next_step
    yield Text.assemble("\n", ("Next: ", "bold"), plain(step.why))
    if step.changes:
        yield Text("\n".join(f"  {plain(change)}" for change in step.changes))
    yield Command(plain(step.command), "bold")
