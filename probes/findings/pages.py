"""The catalogue in words: one page per finding, the index, the table of limits."""

from collections.abc import Iterator
from dataclasses import asdict, fields

from probes.findings.catalogue import CATALOGUE, FAMILIES
from probes.findings.finding import Link
from probes.findings.rule import Family, Rule
from probes.findings.thresholds import Thresholds

_GENERATED = "<!-- written by scripts/build_findings_docs.py from probes/findings; do not edit -->"


def explain(rule: Rule, limits: Thresholds | None = None) -> str:
    """The catalogue entry of a rule as plain text."""
    parts = "\n\n".join(f"{head}\n  {text}" for head, text in _parts(rule, limits or Thresholds()))
    return f"{rule.code}: {rule.title}\n\n{parts}"


def pages() -> dict[str, str]:
    """The folder docs/findings: file name to Markdown."""
    found = {f"{rule.code}.md": _page(rule) for rule in CATALOGUE.values()}
    return {"README.md": _index(), "thresholds.md": _thresholds_page(), **found}


def _parts(rule: Rule, limits: Thresholds) -> Iterator[tuple[str, str]]:
    values = asdict(limits)
    yield "Severity", f"{rule.severity.word}{_kind(rule)}"
    yield "Link of the chain", rule.link.name.lower() if rule.link != Link.CLAIM else "beside it"
    yield "What is measured", rule.what.format(**values)
    yield "Why it matters", rule.why
    yield "Expected", f"{rule.expected.format(**values)}. Source: {rule.source}."
    yield "Remedy", rule.remedy.format(**values)


def _kind(rule: Rule) -> str:
    if rule.link == Link.CLAIM:
        return ""
    if rule.symptom:
        return "; a symptom: it can follow from a break earlier in the chain"
    return "; a setting: it stands for itself"


def _page(rule: Rule) -> str:
    parts = "\n\n".join(f"## {head}\n\n{_escaped(text)}" for head, text in _parts(rule, _DEFAULTS))
    return (
        f"{_GENERATED}\n# {rule.code}: {_escaped(rule.title)}\n\n{parts}\n\n"
        f"Leave it out with `--ignore {rule.code}`; change its severity under `severity`, and the "
        "limits under `thresholds` (see [thresholds](thresholds.md)).\n"
    )


_DEFAULTS = Thresholds()


def _index() -> str:
    families = "\n".join(_family(family) for family in FAMILIES)
    return (
        f"{_GENERATED}\n# Findings\n\n"
        "Every finding has a stable code that never changes its meaning. "
        "`safe-probe explain CODE` prints its page.\n\n"
        "The chain is data, encoder, projector, fusion, gate, gradient, optimizer, influence, "
        "score. The first broken link among the worst findings is the root cause; later symptoms "
        "are marked as its consequences.\n\n"
        "Choose with `--select`, `--ignore` and `--fail-on`, or once for all in `pyproject.toml` "
        "(the same keys work in a YAML file given as `--settings`):\n\n"
        '```toml\n[tool.safe-probe]\nignore = ["SP113"]\nfail-on = "warning"\n'
        'severity = { SP208 = "error" }\nthresholds = { loud = 2.0 }\n```\n\n'
        f"Limits: [thresholds](thresholds.md).\n\n{families}"
    )


def _family(family: Family) -> str:
    rows = "".join(
        f"| [{r.code}]({r.code}.md) | {r.severity.word} | {_escaped(r.title)} |\n"
        for r in family.rules
    )
    return (
        f"## {family.prefix} {family.title}\n\n{family.about}\n\n"
        f"| code | severity | finding |\n| --- | --- | --- |\n{rows}"
    )


def _thresholds_page() -> str:
    rows = "".join(
        "| {} | {:g} | {} | {} | {} |\n".format(
            f.name, getattr(_DEFAULTS, f.name),
            *(_escaped(f.metadata[key]) for key in ("unit", "meaning", "source")),
        )
        for f in fields(Thresholds)
    )  # fmt: skip
    return (
        f"{_GENERATED}\n# Thresholds\n\nOverride any of them under `thresholds` in "
        "`[tool.safe-probe]` of pyproject.toml, or in a YAML file.\n\n"
        f"| name | default | unit | meaning | where it comes from |\n"
        f"| --- | --- | --- | --- | --- |\n{rows}"
    )


def _escaped(text: str) -> str:
    """``text`` with what Markdown would take for markup made plain."""
    for character in ("|", "*", "_", "<"):
        text = text.replace(character, "\\" + character)
    return text
