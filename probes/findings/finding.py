"""A finding: a rule that fired, with what was measured and what to do."""

from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    """How bad a finding is."""

    NOTE = 0
    """Good to know; nothing is broken."""
    WARNING = 1
    """Likely to cost quality, or broken unless it was meant so."""
    ERROR = 2
    """A link of the signal path is broken; training on is a waste."""

    @property
    def word(self) -> str:
        """``note``, ``warning`` or ``error``."""
        return self.name.lower()


class Link(IntEnum):
    """The chain from clip to score; what breaks an earlier link shows in the later ones too."""

    DATA = 0
    ENCODER = 1
    PROJECTOR = 2
    FUSION = 3
    GATE = 4
    GRADIENT = 5
    OPTIMIZER = 6
    INFLUENCE = 7
    SCORE = 8
    CLAIM = 9
    """Beside the chain: a number that somebody stated."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and where."""

    code: str
    """Stable code, e.g. ``SP205``; it never changes its meaning."""
    severity: Severity
    component: str
    """Part of the signal path, e.g. ``projector``, ``gate``, ``fusion:lora_A``."""
    layer: int | None
    """Decoder layer counted from 0; None when it is not about one layer."""
    measured: str
    """What was measured, in words with numbers."""
    expected: str
    """What a healthy model shows, and where that expectation comes from."""
    why: str
    """Why it matters."""
    remedy: str
    """One thing to do: a change of configuration or a hint for the code."""
    title: str = ""
    """The rule in a few words."""
    link: Link = Link.CLAIM
    """The link of the chain that it is about."""
    step: int = 0
    """Optimizer steps done when it was measured."""
    consequence_of: str | None = None
    """Code of the root cause that explains this finding; None when it stands for itself."""

    @property
    def place(self) -> str:
        """Component and layer in words."""
        return self.component if self.layer is None else f"{self.component} @ layer {self.layer}"

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON-safe dictionary."""
        return asdict(self) | {"severity": self.severity.word, "link": self.link.name.lower()}
