"""A report as JUnit XML, so that a CI shows criteria and errors as tests."""

import re
from xml.etree import ElementTree

from probes.findings.finding import Severity
from reports.criterion import Outcome
from reports.grade import Grade
from reports.report import Report

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped (its section 2.2)."""


def junit(report: Report) -> str:
    """The XML document, one test per criterion.

    FAIL is a failure, UNKNOWN is skipped and names the command that measures it, PASS and PARTIAL
    pass. Findings of level error stand in the output of the suite.
    """
    failed = sum(o.grade is Grade.FAIL for o in report.outcomes)
    skipped = sum(o.grade is Grade.UNKNOWN for o in report.outcomes)
    suite = ElementTree.Element(
        "testsuite",
        name=f"safe-probe: {xml_text(report.run.name)}",
        tests=str(len(report.outcomes)),
        failures=str(failed),
        errors="0",
        skipped=str(skipped),
    )
    for outcome in report.outcomes:
        suite.append(_case(outcome, report))
    verdict = report.verdict
    lines = [f"{verdict.decision.name}: {verdict.reason}", f"next: {verdict.next_step.command}"]
    lines += [
        f"{f.code} {f.place}: {f.title} ({f.measured}). {f.remedy}"
        for f in report.findings
        if f.severity is Severity.ERROR
    ]
    _child(suite, "system-out", "\n".join(lines))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _case(outcome: Outcome, report: Report) -> ElementTree.Element:
    c = outcome.criterion
    case = ElementTree.Element("testcase", classname=f"safe-probe.{c.phase}", name=c.title)
    told = f"{outcome.shown}, expected {c.condition}"
    if outcome.grade is Grade.FAIL:
        _child(case, "failure", f"{outcome.evidence}\n{c.why}\nsource: {c.source}", told)
    elif outcome.grade is Grade.UNKNOWN:
        run = f"; run: {report.run.fill(outcome.to_measure)}" if outcome.to_measure else ""
        _child(case, "skipped", None, outcome.evidence + run)
    else:
        _child(case, "system-out", f"{outcome.grade.value}: {told}\n{outcome.evidence}")
    return case


def _child(
    parent: ElementTree.Element, tag: str, text: str | None, message: str | None = None
) -> None:
    child = ElementTree.SubElement(parent, tag)
    child.text = None if text is None else xml_text(text)
    if message is not None:
        child.set("message", xml_text(message))


def xml_text(text: str) -> str:
    """``text`` without the characters that XML 1.0 forbids."""
    return _FORBIDDEN.sub("", text)
