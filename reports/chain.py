"""The signal path as a chain of links, each with its health and its most telling number."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from probes.findings.facts import Facts
from probes.findings.finding import Finding, Link, Severity
from probes.findings.judge import root_cause
from probes.findings.thresholds import Thresholds
from reports.criterion import Outcome
from reports.grade import Grade
from reports.run import Run


class Health(Enum):
    """State of a link."""

    OK = "ok"
    DOUBTFUL = "doubtful"
    BROKEN = "broken"
    UNKNOWN = "unknown"
    """No probe looked at it, or found nothing to measure."""


@dataclass(frozen=True)
class ChainLink:
    """One link from the clip to the score."""

    link: Link
    name: str
    """As it is drawn, e.g. ``projector``."""
    health: Health
    number: str
    """Its most telling number, in words; empty when there is none."""
    findings: tuple[Finding, ...]
    """Errors and warnings about it, the root cause first."""
    root: bool
    """Whether it is the earliest broken link."""

    def to_json(self) -> dict[str, Any]:
        """The link as JSON-safe values; findings by code."""
        return {
            "link": self.link.name.lower(),
            "name": self.name,
            "health": self.health.value,
            "number": self.number,
            "findings": [f.code for f in self.findings],
            "root": self.root,
        }


def _span(values: Sequence[float], text: str) -> str:
    """``text`` with the range of values; empty when nothing was measured."""
    if not values:
        return ""
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return text.format(low if low == high else f"{low}-{high}")


def _clips(facts: Facts) -> str:
    batches, silent = (
        facts.value("data", c, s) for c, s in (("text", "rows"), ("signal", "silent"))
    )
    return "" if batches is None else f"{batches:.0f} captions, {silent or 0:.0%} silent clips"


def _encoder(facts: Facts) -> str:
    found = facts.value("data", "signal", "cosine_between_clips")
    return "" if found is None else f"cosine between clips {found:.2f}"


def _projector(facts: Facts) -> str:
    tokens, l2 = (
        facts.value("data", "signal", "tokens"),
        facts.value("magnitude", "projector", "l2_median"),
    )
    if l2 is None:
        return ""
    return f"{f'{tokens:.0f} tokens, ' if tokens else ''}L2 {l2:.3g}"


def _fusion(facts: Facts) -> str:
    values = facts.layers("magnitude", "fusion", "contribution_median").values()
    return _span(list(values), "contribution {}")


def _gate(facts: Facts) -> str:
    return _span(list(facts.layers("gates", "gate", "effective").values()), "gate {}")


def _gradient(facts: Facts) -> str:
    found = facts.value("gradflow", "projector", "norm")
    return "" if found is None else f"projector gradient {found:.2g}"


def _optimizer(facts: Facts) -> str:
    found = facts.value("gradflow", "projector", "update_to_weight")
    return "" if found is None else f"projector step {found:.1e} of its weight"


def _influence(facts: Facts) -> str:
    found = facts.value("influence", "signal:swapped", "loss_change")
    return "" if found is None else f"another clip's audio {found:+.2f} nats/token"


def _score(facts: Facts) -> str:
    score = facts.value("scores", "score", "cider")
    wrong = facts.value("scores", "score", "shuffled")
    if score is None:
        return ""
    return f"CIDEr {score:.1f}" + ("" if wrong is None else f", wrong audio {wrong:.1f}")


_LINKS: tuple[tuple[Link, str, tuple[str, ...], Callable[[Facts], str]], ...] = (
    (Link.DATA, "clips and captions", ("data",), _clips),
    (Link.ENCODER, "audio encoder", ("data",), _encoder),
    (Link.PROJECTOR, "projector", ("magnitude",), _projector),
    (Link.FUSION, "fusion", ("magnitude",), _fusion),
    (Link.GATE, "gate", ("gates",), _gate),
    (Link.GRADIENT, "gradient", ("gradflow",), _gradient),
    (Link.OPTIMIZER, "optimizer", ("gradflow",), _optimizer),
    (Link.INFLUENCE, "influence on the output", ("influence",), _influence),
    (Link.SCORE, "score", ("scores",), _score),
)
"""Link, its name, the probes that look at it, and its number."""


def chain(
    run: Run, findings: Sequence[Finding], outcomes: Sequence[Outcome]
) -> tuple[ChainLink, ...]:
    """The links of a run, in the order of the signal.

    A link that no finding is about is doubtful when a criterion about it is not passed.
    """
    facts, root = run.facts, root_cause(findings)
    doubts = {o.criterion.link for o in outcomes if o.grade in (Grade.FAIL, Grade.PARTIAL)}
    probed = {r.probe for r in facts.history}
    links = []
    for link, name, probes, number in _LINKS:
        about = tuple(f for f in findings if f.link == link and f.severity > Severity.NOTE)
        shown = number(facts)
        measured = probed.issuperset(probes) and _is_number(shown)
        if link is Link.ENCODER and _one_sound(facts):
            measured = False
        health = _health(about, measured)
        if health is Health.OK and link in doubts:
            health = Health.DOUBTFUL
        links.append(
            ChainLink(
                link=link,
                name=name,
                health=health,
                number=shown,
                findings=about,
                root=root is not None and root.link == link,
            )
        )
    return tuple(links)


def _health(findings: Sequence[Finding], measured: bool) -> Health:
    worst = max((f.severity for f in findings), default=None)
    if worst is Severity.ERROR:
        return Health.BROKEN
    if worst is Severity.WARNING:
        return Health.DOUBTFUL
    return Health.OK if measured else Health.UNKNOWN


def _one_sound(facts: Facts) -> bool:
    """Whether all clips sound the same (SP609): what the encoder makes of others is not seen."""
    cosine = facts.value("data", "signal", "cosine_between_clips")
    return cosine is not None and cosine > Thresholds().same_clips


def _is_number(shown: str) -> bool:
    """Whether there is something to show, and none of it is NaN or infinite."""
    return shown != "" and re.search(r"\b(nan|inf)\b", shown) is None
