"""What a user may set: which findings count, how much, and from which limits on."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, shown, unknown
from configs.yaml_text import read_yaml
from probes.findings.catalogue import CATALOGUE, begins_a_code, catalogue, unknown_code
from probes.findings.finding import Finding, Severity
from probes.findings.thresholds import Thresholds

WORDS = {severity.word: severity for severity in Severity}
NEVER = "never"
_KEYS = ("select", "ignore", "fail-on", "severity", "thresholds")


@dataclass(frozen=True)
class Settings:
    """How findings are judged.

    In ``pyproject.toml`` (``[tool.safe-probe]``) or a YAML file::

        select = ["SP1", "SP2"]          # families or codes; all when left out
        ignore = ["SP113"]
        fail-on = "warning"              # note, warning, error (default), never
        severity = { SP208 = "error" }
        thresholds = { loud = 2.0 }      # see `safe-probe list --thresholds`
    """

    select: tuple[str, ...] = ()
    """Beginnings of codes to report; empty for all."""
    ignore: tuple[str, ...] = ()
    """Beginnings of codes to leave out; stronger than select."""
    fail_on: Severity | None = Severity.ERROR
    """Least severity that fails a check; None for none."""
    severity: Mapping[str, Severity] = field(default_factory=dict)
    """Another severity by code."""
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        for what, codes in (("select", self.select), ("ignore", self.ignore)):
            for code in codes:
                if not begins_a_code(code):
                    raise ConfigError(f"{what}: {unknown_code(code)}")
        for code in self.severity:
            if code not in CATALOGUE and code not in catalogue():
                raise ConfigError(f"severity: {unknown_code(code)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """The settings with these keys.

        Raises:
            ConfigError: an unknown key, code, severity or threshold, or a value of a wrong type.
        """
        for key in values:
            if key not in _KEYS:
                raise ConfigError(unknown("key in the safe-probe settings", str(key), _KEYS))
        severities, limits = values.get("severity", {}), values.get("thresholds", {})
        for key, value in (("severity", severities), ("thresholds", limits)):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{key} = {shown(value)}: must be a mapping")
        return cls(
            select=_codes("select", values.get("select", ())),
            ignore=_codes("ignore", values.get("ignore", ())),
            fail_on=parse_fail_on(values.get("fail-on", "error")),
            severity={str(code): _severity(code, word) for code, word in severities.items()},
            thresholds=Thresholds.from_dict(limits),
        )

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """The settings in a YAML file, or in ``[tool.safe-probe]`` of a TOML file.

        Raises:
            ConfigError: not readable, or as :meth:`from_dict` does.
        """
        try:
            values = _in_toml(path) if path.suffix == ".toml" else read_yaml(path) or {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"cannot read the settings in {path}: {error}") from None
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path} must hold keys and values, such as 'ignore: [SP113]'")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def find(cls, folder: Path) -> "Settings":
        """The settings of the nearest ``pyproject.toml`` above ``folder``, or the defaults."""
        for place in (folder, *folder.parents):
            file = place / "pyproject.toml"
            if file.is_file():
                return cls.read(file)
        return cls()

    def reports(self, code: str) -> bool:
        """Whether findings with this code are wanted."""
        wanted = not self.select or code.startswith(self.select)
        return wanted and not (self.ignore and code.startswith(self.ignore))

    def fails(self, findings: Iterable[Finding]) -> bool:
        """Whether one of the findings is bad enough to fail a check."""
        return self.fail_on is not None and any(f.severity >= self.fail_on for f in findings)


def _in_toml(path: Path) -> Any:
    return tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("safe-probe", {})


def parse_fail_on(word: Any) -> Severity | None:
    """The severity called ``word``; None for ``never``.

    Raises:
        ConfigError: another word.
    """
    if word == NEVER:
        return None
    if not isinstance(word, str) or word not in WORDS:
        raise ConfigError(unknown("value of fail-on", str(word), [*WORDS, NEVER]))
    return WORDS[word]


def _severity(code: str, word: Any) -> Severity:
    if not isinstance(word, str) or word not in WORDS:
        raise ConfigError(unknown(f"severity of {code}", str(word), WORDS))
    return WORDS[word]


def _codes(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(code, str) for code in value):
        raise ConfigError(f"{key} = {shown(value)}: must be a list of codes such as SP2 or SP205")
    return tuple(code.upper() for code in value)
