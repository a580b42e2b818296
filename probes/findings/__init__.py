"""Findings: rules over records, each with a stable code. Needs neither torch nor a model."""

from probes.findings.catalogue import CATALOGUE, FAMILIES, get_rule
from probes.findings.finding import Finding, Link, Severity
from probes.findings.judge import Verdict, judge
from probes.findings.rule import Family, Rule
from probes.findings.settings import Settings
from probes.findings.thresholds import Thresholds

__all__ = [
    "CATALOGUE",
    "FAMILIES",
    "Family",
    "Finding",
    "Link",
    "Rule",
    "Settings",
    "Severity",
    "Thresholds",
    "Verdict",
    "get_rule",
    "judge",
]
