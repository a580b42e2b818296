"""What stands on the page of a run, ready to be laid out: words, marks, pictures and samples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.overrides import flatten
from probes.findings.finding import Finding, Severity
from probes.findings.view import grouped, measured, place
from reports.chain import ChainLink, Health
from reports.claims import AGREES, NOT_MEASURED, OFF
from reports.grade import Grade
from reports.parameter_table import ParameterRow, parameter_table
from reports.pictures import PlotSection, plot_sections
from reports.printed import number
from reports.run import Run
from reports.samples import Samples, samples
from reports.verdict import Decision

if TYPE_CHECKING:
    from reports.report import Report

MOST_FINDINGS = 100
MOST_ROWS = 200
HEALTH: Mapping[Health, str] = {
    Health.OK: "good", Health.DOUBTFUL: "fair", Health.BROKEN: "bad", Health.UNKNOWN: "unknown",
}  # fmt: skip
GRADES: Mapping[Grade, str] = {
    Grade.PASS: "good", Grade.PARTIAL: "fair", Grade.FAIL: "bad", Grade.UNKNOWN: "unknown",
}  # fmt: skip
DECISIONS: Mapping[Decision, str] = {
    Decision.PROCEED: "good", Decision.PARTIAL: "fair", Decision.UNFINISHED: "unknown",
    Decision.BLOCKED: "bad",
}  # fmt: skip
SEVERITIES: Mapping[Severity, str] = {
    Severity.NOTE: "unknown", Severity.WARNING: "fair", Severity.ERROR: "bad",
}  # fmt: skip
CLAIMS: Mapping[str, str] = {AGREES: "good", OFF: "fair", NOT_MEASURED: "unknown"}
"""Which of the four marks stands for what; equal numbers of two IntEnums would be one key."""
SECTIONS = (
    ("criteria", "Criteria"), ("findings", "Findings"), ("magnitudes", "Magnitude"),
    ("gate", "Gates"), ("gradient", "Gradient flow"), ("curves", "Loss and CIDEr"),
    ("influences", "Influence"), ("parameters", "Parameters"), ("samples", "Samples"),
    ("claims", "Claims"), ("checklist", "Checklist"), ("run", "Run"),
)  # fmt: skip
Rows = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Page:
    """The page of one run."""

    decision: str
    """Kind of mark of the verdict."""
    reason: tuple[str, ...]
    facts: tuple[str, ...]
    """What was run and how far it came."""
    chain: Rows
    contents: tuple[tuple[str, str], ...]
    """Key and title of every section."""
    criteria: Rows
    findings: Rows
    more_findings: int
    """How many did not find room."""
    probed: bool
    """Whether any probe has looked."""
    plots: tuple[PlotSection, ...]
    parameters: tuple[ParameterRow, ...]
    parameters_measured: bool
    samples: tuple[Samples, ...]
    sound_note: str
    """Why there are no sounds; empty when there are, or when there are no samples."""
    claims: Rows
    claim_counts: str
    """How many claims are off, agree, and were not measured."""
    checklist: Rows
    details: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """Title and rows of environment, configuration and what went wrong."""
    absent: tuple[str, ...]
    """What of that the run did not write down."""
    check: str
    """The command that runs all probes."""
    evaluate: str
    """The command that makes the final scores."""

    @classmethod
    def of(cls, report: "Report", *, audio: bool = True) -> "Page":
        """Lay out a report; ``audio`` says whether to embed the sounds of the samples."""
        run = report.run
        groups = grouped(report.findings)
        chosen = samples(run, audio)
        shown = groups[:MOST_FINDINGS]
        return cls(
            decision=DECISIONS[report.verdict.decision],
            reason=tuple(report.verdict.reason.split("; ")),
            facts=_facts(run),
            chain=_chain(report.chain, shown),
            contents=SECTIONS,
            criteria=tuple(_criterion(o, run) for o in report.outcomes),
            findings=tuple(_finding(i, group) for i, group in enumerate(shown, 1)),
            more_findings=len(groups) - len(shown),
            probed=bool(run.probed),
            plots=plot_sections(run),
            parameters=parameter_table(run),
            parameters_measured=any(r.probe == "parameters" for r in run.probed),
            samples=chosen,
            sound_note=_sound_note(chosen, audio),
            claims=tuple(
                vars(c) | {"kind": CLAIMS.get(c.verdict, "unknown")} for c in report.claims
            ),
            claim_counts=", ".join(
                f"{sum(c.verdict == word for c in report.claims)} {word}"
                for word in (OFF, AGREES, NOT_MEASURED)
            ),
            checklist=tuple(
                {"kind": GRADES[i.grade], "grade": i.grade.value, "phase": i.phase,
                 "text": i.text, "evidence": i.evidence}
                for i in report.checklist
            ),
            details=tuple(_details(run)),
            absent=() if run.environment else ("environment.json is missing or damaged.",),
            check=run.fill("safe-probe check RUN --output RUN/check"),
            evaluate=run.fill("safe-train evaluate RUN"),
        )  # fmt: skip


def _facts(run: Run) -> tuple[str, ...]:
    model, state = run.config.model, "finished" if run.finished else "not finished"
    if run.running:
        state = "training now"
    if run.checkpoint is not None:
        state = "checkpoint"
    return (
        f"config {run.config.name}", f"backbone {model.backbone}",
        f"audio encoder {model.audio_encoder}", f"data {run.config.data.root}",
        f"step {run.now:,}", f"epoch {number(run.epochs_done)}", state,
    )  # fmt: skip


def _chain(links: Sequence[ChainLink], groups: Sequence[Sequence[Finding]]) -> Rows:
    targets: dict[str, str] = {}
    for i, group in enumerate(groups, 1):
        targets.setdefault(group[0].code, f"finding-{i}")
    rows, dead = [], False
    for link in links:
        codes = dict.fromkeys(f.code for f in link.findings)
        rows.append({
            "kind": HEALTH[link.health], "name": link.name, "word": link.health.value,
            "number": link.number, "root": link.root, "dead": dead,
            "codes": [(code, targets[code]) for code in codes if code in targets],
        })  # fmt: skip
        dead = dead or (link.root and link.health is Health.BROKEN)
    return tuple(rows)


def _criterion(outcome: Any, run: Run) -> dict[str, Any]:
    c = outcome.criterion
    unknown = outcome.grade is Grade.UNKNOWN
    return {
        "kind": GRADES[outcome.grade], "grade": outcome.grade.value, "title": c.title,
        "decides": c.decides, "phase": c.phase, "shown": outcome.shown,
        "expected": str(c.condition),
        "source": c.source, "evidence": outcome.evidence,
        "command": run.fill(outcome.to_measure) if unknown else "",
    }  # fmt: skip


def _finding(i: int, group: Sequence[Finding]) -> dict[str, Any]:
    first = group[0]
    names = ("code", "title", "expected", "why", "remedy", "consequence_of")
    return {name: getattr(first, name) for name in names} | {
        "id": f"finding-{i}", "kind": SEVERITIES[first.severity], "severity": first.severity.word,
        "place": place(group), "measured": measured(group),
    }  # fmt: skip


def _sound_note(chosen: Sequence[Samples], audio: bool) -> str:
    if not audio or any(s.audio for group in chosen for s in group.samples):
        return ""
    return "No sounds: the clips' files are not where they were, or cannot be decoded." * bool(
        chosen
    )


def _details(run: Run) -> Iterable[tuple[str, tuple[tuple[str, str], ...]]]:
    parts: dict[str, Iterable[tuple[str, object]]] = {
        "Damaged files": run.damaged.items(),
        "Clips that could not be used": (
            (str(row.get("clip", row.get("id", "clip"))), row) for row in run.problems
        ),
        "Environment": nested(run.environment),
        "Resources": nested(run.resources),
        "Configuration": flatten(run.config.to_dict()),
    }
    for title, found in parts.items():
        rows = tuple((str(key), number(value)) for key, value in found)
        if rows:
            yield title, rows[:MOST_ROWS]


def nested(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    """The leaves of nested mappings by dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from nested(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
