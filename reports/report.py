"""A run, judged: outcomes, findings, the chain, the claims, the checklist and the verdict."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from probes.findings.finding import Finding
from reports.chain import ChainLink, chain
from reports.checklist import Item, checklist
from reports.claims import ClaimCheck, audit
from reports.criteria import CRITERIA
from reports.criterion import Outcome
from reports.run import Run, read_run
from reports.schema import json_safe
from reports.verdict import Verdict, decide

SCHEMA = "safe-probe.report"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Report:
    """What a run means. The same run gives the same report, always."""

    run: Run
    outcomes: tuple[Outcome, ...]
    """One per criterion, in the order of the table."""
    findings: tuple[Finding, ...]
    """The root cause first, then along the chain."""
    verdict: Verdict

    @classmethod
    def of(cls, run: Run | Path | str, baseline: Run | None = None) -> "Report":
        """Judge a run.

        Args:
            run: a run, or the path of one or of a checkpoint in it.
            baseline: the run to compare with; its stated score (18) when None.

        Raises:
            ReportError: no run there.
        """
        run = run if isinstance(run, Run) else read_run(run)
        run = run if baseline is None else replace(run, baseline=baseline)
        outcomes = tuple(criterion.judge(run) for criterion in CRITERIA)
        return cls(run, outcomes, run.findings, decide(run, outcomes))

    @cached_property
    def chain(self) -> tuple[ChainLink, ...]:
        """The signal path, link by link."""
        return chain(self.run, self.findings, self.outcomes)

    @cached_property
    def claims(self) -> tuple[ClaimCheck, ...]:
        """Every number that the plan states, held against what is known."""
        return audit(self.run)

    @cached_property
    def checklist(self) -> tuple[Item, ...]:
        """The plan's verification checklist, ticked from what was found."""
        return checklist(self.run, self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON-safe values (``report.schema.json`` describes them)."""
        run = self.run
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "run": {
                "name": run.name,
                "config": run.config.to_dict(),
                "step": run.now,
                "checkpoint": run.checkpoint,
                "epochs": run.epochs_done,
                "finished": run.finished,
                "damaged": dict(run.damaged),
                "environment": json_safe(run.environment),
                "resources": json_safe(run.resources),
            },
            "verdict": self.verdict.to_json(),
            "criteria": [outcome.to_json() for outcome in self.outcomes],
            "findings": [finding.to_json() for finding in self.findings],
            "chain": [link.to_json() for link in self.chain],
            "claims": [claim.to_json() for claim in self.claims],
            "checklist": [item.to_json() for item in self.checklist],
        }

    def _repr_html_(self) -> str:
        """The page, as a notebook shows it."""
        from reports.html import notebook

        return notebook(self)
