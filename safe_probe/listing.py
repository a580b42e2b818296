"""The catalogue and the limits as plain text."""

from dataclasses import fields

from configs.errors import ConfigError, unknown
from probes.findings.catalogue import FAMILIES, OWN, all_families, begins_a_code
from probes.findings.thresholds import Thresholds


def findings_text(prefix: str = "") -> str:
    """One line per finding whose code begins with ``prefix``, under its family.

    Raises:
        ConfigError: no code begins so.
    """
    prefix = prefix.upper()
    if not begins_a_code(prefix):
        raise ConfigError(unknown("finding", prefix, [f.prefix for f in all_families()]))
    parts = []
    for family in FAMILIES if prefix.startswith(OWN) else all_families():
        rules = [r for r in family.rules if r.code.startswith(prefix)]
        if rules:
            lines = [f"  {r.code}  {r.severity.word:<8} {r.title}" for r in rules]
            parts.append("\n".join([f"{family.prefix} {family.title}", *lines]))
    return "\n\n".join(parts)


def thresholds_text() -> str:
    """Every limit with its default, unit, meaning and source."""
    limits = Thresholds()
    return "\n".join(
        f"{f.name} = {getattr(limits, f.name):g} ({f.metadata['unit']})\n"
        f"  {f.metadata['meaning']}\n  source: {f.metadata['source']}"
        for f in fields(Thresholds)
    )
