"""From records to findings, and from findings to the first broken link."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from probes.findings.catalogue import catalogue
from probes.findings.facts import Facts
from probes.findings.finding import Finding, Link, Severity
from probes.findings.settings import Settings
from probes.record import Record


def judge(records: Iterable[Record], settings: Settings | None = None) -> list[Finding]:
    """The findings in ``records``: the root cause first, then along the chain.

    Every rule looks, whatever is selected, so that a cause that is not reported still explains
    its consequences.

    Args:
        records: of any number of probes and steps; the newest count.
        settings: which findings to report, severities and limits.
    """
    settings = settings or Settings()
    facts = Facts(records)
    step = max((r.step for r in facts.history), default=0)
    found = [
        replace(f, severity=settings.severity.get(f.code, f.severity), step=step)
        for rule in catalogue().values()
        for f in rule.findings(facts, settings.thresholds)
    ]
    return [f for f in trace(found) if settings.reports(f.code)]


def trace(findings: Sequence[Finding]) -> list[Finding]:
    """Findings along the chain, the root cause first and its consequences marked.

    The root cause is the first broken link: of the findings of the worst severity the one whose
    link comes first, or a milder one that explains it (``Rule.explains``). A later finding is its
    consequence when it is a symptom (something measured that an earlier break can cause), not when
    it is a setting that is wrong by itself.
    """
    rules, ordered = catalogue(), sorted(findings, key=_along_the_chain)
    root = root_cause(ordered)
    if root is None:
        return ordered
    marked = [
        replace(f, consequence_of=root.code)
        if rules[f.code].symptom and f.code != root.code and f.link >= root.link
        and f.link != Link.CLAIM
        else f
        for f in ordered
        if f is not root
    ]  # fmt: skip
    return [root, *marked]


def root_cause(findings: Sequence[Finding]) -> Finding | None:
    """The first broken link among the worst findings; None when there are only notes."""
    real = [f for f in findings if f.link != Link.CLAIM and f.severity > Severity.NOTE]
    if not real:
        return None
    rules, worst = catalogue(), max(f.severity for f in real)
    # what somebody has set comes before what follows from it within the same link
    first = lambda f: (f.link, rules[f.code].symptom, *_along_the_chain(f)[1:])  # noqa: E731
    root = min((f for f in real if f.severity == worst), key=first)
    causes = [f for f in real if root.code in rules[f.code].explains]
    return min(causes, key=first, default=root)


@dataclass(frozen=True)
class Verdict:
    """The findings in one line."""

    severity: Severity | None
    """The worst; None when there is nothing but notes, or nothing at all."""
    root: Finding | None
    """The first broken link."""

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> "Verdict":
        """The verdict on these findings."""
        root = root_cause(findings)
        worst = max((f.severity for f in findings), default=Severity.NOTE)
        return cls(worst if worst > Severity.NOTE else None, root)

    def __str__(self) -> str:
        if self.severity is None:
            return "no broken link found"
        word = "broken" if self.severity is Severity.ERROR else "doubtful"
        if self.root is None:
            return f"{word}: see the findings"
        return f"{word} at {self.root.place}: {self.root.title} ({self.root.code})"


def _along_the_chain(finding: Finding) -> tuple[int, int, str]:
    layer = -1 if finding.layer is None else finding.layer
    return (finding.link, layer, finding.code)
