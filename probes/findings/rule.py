"""Rules: what each finding means, and the function that looks for it in the records."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Finding, Link, Severity
from probes.findings.thresholds import Thresholds

Check = Callable[[Facts, Thresholds], Iterator[Hit]]


@dataclass(frozen=True)
class Rule:
    """One entry of the catalogue."""

    code: str
    title: str
    link: Link
    severity: Severity
    """Usual severity; a hit may be milder or worse."""
    what: str
    """What is measured, and when the rule fires; ``{name}`` stands for a threshold."""
    why: str
    """Why it matters."""
    expected: str
    """What a healthy model shows."""
    source: str
    """Where the expectation comes from."""
    remedy: str
    """One change of configuration, or a hint for the code."""
    check: Check
    symptom: bool = True
    """Whether a broken earlier link can cause it; False for what somebody has set."""
    explains: tuple[str, ...] = ()
    """Codes of worse findings that are its consequence, and do not stand beside it by chance."""

    def findings(self, facts: Facts, limits: Thresholds) -> Iterator[Finding]:
        """The findings of this rule."""
        values = asdict(limits)
        for hit in self.check(facts, limits):
            yield Finding(
                code=self.code,
                severity=self.severity if hit.severity is None else Severity(hit.severity),
                component=hit.component,
                layer=hit.layer,
                measured=hit.measured,
                expected=f"{self.expected.format(**values)} ({self.source})",
                why=self.why,
                remedy=hit.remedy or self.remedy.format(**values),
                title=self.title,
                link=self.link,
            )


@dataclass(frozen=True)
class Family:
    """Rules that belong together."""

    prefix: str
    """First three characters of its codes."""
    title: str
    about: str
    """One paragraph."""
    rules: list[Rule] = field(default_factory=list)

    def rule(
        self,
        code: str,
        title: str,
        link: Link,
        severity: Severity,
        *,
        what: str,
        why: str,
        expected: str,
        source: str,
        remedy: str,
        symptom: bool = True,
        explains: tuple[str, ...] = (),
    ) -> Callable[[Check], Check]:
        """Enter the decorated function into the catalogue; see :class:`Rule` for the rest."""

        def enter(check: Check) -> Check:
            self.rules.append(
                Rule(
                    code,
                    title,
                    link,
                    severity,
                    what,
                    why,
                    expected,
                    source,
                    remedy,
                    check,
                    symptom,
                    explains,
                )
            )
            self.rules.sort(key=lambda rule: rule.code)  # a family may be spread over files
            return check

        return enter
