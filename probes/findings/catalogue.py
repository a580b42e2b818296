"""All rules by code: the single source of explanations, documentation and findings."""

from configs.errors import ConfigError, did_you_mean
from probes.findings import independence, steps, wiring  # noqa: F401 - they enter their rules
from probes.findings.data import DATA
from probes.findings.gates import GATES
from probes.findings.gradients import GRADIENTS
from probes.findings.influence import INFLUENCE
from probes.findings.magnitude import MAGNITUDE
from probes.findings.parameters import PARAMETERS
from probes.findings.rule import Family, Rule
from probes.findings.scores import SCORES

FAMILIES: tuple[Family, ...] = (
    MAGNITUDE, GATES, GRADIENTS, INFLUENCE, PARAMETERS, DATA, SCORES,
)  # fmt: skip
CATALOGUE: dict[str, Rule] = {rule.code: rule for family in FAMILIES for rule in family.rules}


def unknown_code(code: str) -> str:
    """The end of an error about a code that is not in the catalogue."""
    hint = did_you_mean(code.upper(), CATALOGUE) or ";"
    return f"unknown finding {code!r}{hint} `safe-probe list` prints all"


def get_rule(code: str) -> Rule:
    """The rule with this code, in either case.

    Raises:
        ConfigError: there is none; near misses are named.
    """
    if code.upper() not in CATALOGUE:
        raise ConfigError(unknown_code(code))
    return CATALOGUE[code.upper()]
