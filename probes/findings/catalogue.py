"""All rules by code: the single source of explanations, documentation and findings.

Other packages add families of their own by entry points of the group ``safe_probe.findings``
(docs/extend.md); these are imported when a code is asked for that is not built in, or all of them.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial

from configs.errors import ConfigError, did_you_mean, shown
from configs.plugins import ExtensionPoint
from probes.findings import independence, steps, wiring  # noqa: F401 - they enter their rules
from probes.findings.data import DATA
from probes.findings.facts import Facts, Hit
from probes.findings.gates import GATES
from probes.findings.gradients import GRADIENTS
from probes.findings.influence import INFLUENCE
from probes.findings.magnitude import MAGNITUDE
from probes.findings.parameters import PARAMETERS
from probes.findings.rule import Family, Rule
from probes.findings.scores import SCORES
from probes.findings.thresholds import Thresholds

FAMILIES: tuple[Family, ...] = (
    MAGNITUDE, GATES, GRADIENTS, INFLUENCE, PARAMETERS, DATA, SCORES,
)  # fmt: skip
CATALOGUE: dict[str, Rule] = {rule.code: rule for family in FAMILIES for rule in family.rules}


ADDED = ExtensionPoint("safe_probe.findings", "family of findings")
OWN = "SP"
"""What the built-in codes begin with, and no others."""
_CODE = re.compile(r"[A-Z]{2,8}[0-9]{3}")


def all_families() -> tuple[Family, ...]:
    """The built-in families, then those of other packages.

    Raises:
        PluginError: one of these cannot be imported, or its codes are not its own.
    """
    found: list[Family] = []
    taken: dict[str, str] = {}
    for name in ADDED.names():
        family = _checked(name, ADDED.load(name))
        for rule in family.rules:
            if rule.code in taken:
                raise ADDED.broken(name, f"{rule.code} is a code of {taken[rule.code]!r} too")
            taken[rule.code] = name
        found.append(family)
    return (*FAMILIES, *found)


def catalogue() -> dict[str, Rule]:
    """All rules by code, also those of other packages.

    Raises:
        PluginError: as :func:`all_families`.
    """
    return {rule.code: rule for family in all_families() for rule in family.rules}


def _checked(name: str, family: object) -> Family:
    """A package's family, whose rules name it when they fail."""
    if not isinstance(family, Family):
        raise ADDED.broken(name, f"a {type(family).__name__} is no Family")
    limits = asdict(Thresholds())
    rules = []
    for rule in family.rules:
        own = rule.code.startswith(family.prefix) and not rule.code.startswith(OWN)
        if not (own and _CODE.fullmatch(rule.code)):
            raise ADDED.broken(
                name, f"code {rule.code!r} must be its prefix {family.prefix!r} and digits, three "
                f"in all, such as ACME101, and must not begin with {OWN}"
            )  # fmt: skip
        try:
            for text in (rule.what, rule.expected, rule.remedy):
                text.format(**limits)
        except (KeyError, IndexError, ValueError) as error:
            raise ADDED.broken(name, f"{rule.code} names an unknown threshold {error}") from error
        rules.append(replace(rule, check=partial(_look, name, rule)))
    return replace(family, rules=rules)


def _look(name: str, rule: Rule, facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    """What a package's rule finds; an error in it names the package."""
    try:
        yield from rule.check(facts, limits)
    except Exception as error:
        raise ADDED.broken(name, f"{rule.code}: {type(error).__name__}: {error}") from error


def unknown_code(code: str) -> str:
    """The end of an error about a code that is not in the catalogue."""
    hint = did_you_mean(code.upper(), catalogue()) or ";"
    return f"unknown finding {shown(code)}{hint} `safe-probe list` prints all"


def begins_a_code(beginning: str) -> bool:
    """Whether a code begins so; other packages' are looked at only when no built-in one does."""
    builtin = any(code.startswith(beginning) for code in CATALOGUE)
    return builtin or any(code.startswith(beginning) for code in catalogue())


def get_rule(code: str) -> Rule:
    """The rule with this code, in either case.

    Raises:
        ConfigError: there is none; near misses are named.
    """
    rules = CATALOGUE if code.upper() in CATALOGUE else catalogue()
    if code.upper() not in rules:
        raise ConfigError(unknown_code(code))
    return rules[code.upper()]
