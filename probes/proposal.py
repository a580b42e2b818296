"""What calibration measured and proposes: plain numbers, no model.

Records of a reading (probe ``calibrate``): ``projector`` ``scale`` (factor) and ``rms_median``
(RMS/element of its tokens); ``gate`` ``gate_init`` (stored value, factor); by layer ``fusion``
``contribution_median`` (ratio); ``signal:own`` and ``fusion:off`` ``loss`` (nats/token).
"""

import math
from dataclasses import dataclass
from typing import Any

from probes.record import Record, Rows

BAND = (0.1, 0.3)
"""Contribution ||gate * branch|| / ||hidden|| wanted in every fusion layer at the start. Source: a
small real run; above, the sound drowns the text, below, it is nearly silent."""
EXTRA_LOSS = 0.5
"""Nats per token by which the first loss may exceed the loss without the signal."""


@dataclass(frozen=True)
class Setting:
    """The two numbers that are calibrated."""

    scale: float
    """Amplitude of the projector's ``tanh * scale``."""
    gate_init: float
    """Stored start value of every residual gate."""

    def rounded(self) -> "Setting":
        """To three digits, so that what was measured is what gets written down."""
        return Setting(float(f"{self.scale:.3g}"), float(f"{self.gate_init:.3g}"))


@dataclass(frozen=True)
class Reading:
    """A model measured at one setting."""

    setting: Setting
    contribution: dict[int, float]
    """Median over real text tokens, by fusion layer; NaN where it could not be measured."""
    token_rms: float
    """Median RMS per element of the projector's tokens."""
    loss: float | None
    """Nats per token with the signal; None without labels."""
    loss_without: float | None
    """Nats per token of the bare backbone; None where it cannot be had."""

    @property
    def misses(self) -> tuple[int, ...]:
        """Fusion layers outside :data:`BAND`."""
        low, high = BAND
        return tuple(i for i, c in self.contribution.items() if not low <= c <= high)

    @property
    def extra_loss(self) -> float | None:
        """Loss with the signal minus loss without; None when one of them is missing."""
        if self.loss is None or self.loss_without is None:
            return None
        return self.loss - self.loss_without

    @property
    def too_loud(self) -> bool:
        """Whether the first loss exceeds the loss without the signal by too much (or is NaN)."""
        return self.extra_loss is not None and not self.extra_loss <= EXTRA_LOSS

    @property
    def good(self) -> bool:
        """Whether nothing is left to wish for."""
        return not self.misses and not self.too_loud

    @property
    def badness(self) -> tuple[float, float]:
        """For ordering: how many wishes fail, and by how much (logarithmic, nats)."""
        middle = math.sqrt(BAND[0] * BAND[1])
        gaps = [
            abs(math.log(c / middle)) if 0 < c < math.inf else math.inf
            for c in self.contribution.values()
        ]
        extra = self.extra_loss or 0.0
        return len(self.misses) + self.too_loud, max(gaps) + max(0.0, extra if extra > 0 else 0.0)

    @property
    def records(self) -> list[Record]:
        """The same as records of the probe ``calibrate``, see this module's docstring."""
        rows = Rows("calibrate", 0)
        rows.add("projector", "scale", self.setting.scale, "factor")
        rows.add("gate", "gate_init", self.setting.gate_init, "factor")
        rows.add("projector", "rms_median", self.token_rms, "RMS/element")
        for layer, value in self.contribution.items():
            rows.add("fusion", "contribution_median", value, "ratio", layer)
        if self.loss is not None:
            rows.add("signal:own", "loss", self.loss, "nats/token")
        if self.loss_without is not None:
            rows.add("fusion:off", "loss", self.loss_without, "nats/token")
        return rows.records


@dataclass(frozen=True)
class Proposal:
    """The proposed setting with what was measured before and, on a fresh build, after."""

    before: Reading
    after: Reading
    norm_rms: dict[int, float]
    """Median RMS per element of what each fusion layer's own norm makes of the text: the size of
    input that frozen key and value weights know."""
    trials: int
    """Settings that were measured on the way."""

    @property
    def scale(self) -> float:
        """Proposed amplitude of the projector."""
        return self.after.setting.scale

    @property
    def gate_init(self) -> float:
        """Proposed start value of the gates."""
        return self.after.setting.gate_init

    @property
    def satisfied(self) -> bool:
        """Whether every layer and the first loss are as wanted, by measurement."""
        return self.after.good

    @property
    def set_values(self) -> list[str]:
        """Values for ``--set``."""
        return [
            f"model.projector.scale={self.scale!r}",
            f"model.fusion.gate_init={self.gate_init!r}",
        ]

    @property
    def mapping(self) -> dict[str, Any]:
        """The same for a YAML file."""
        projector, fusion = {"scale": self.scale}, {"gate_init": self.gate_init}
        return {"model": {"projector": projector, "fusion": fusion}}

    @property
    def lines(self) -> list[str]:
        """What is not as wanted, in sentences; empty when all is."""
        after, (low, high) = self.after, BAND
        found = [
            f"layer {i}: contribution {after.contribution[i]:.3g} is "
            f"{'above' if after.contribution[i] > high else 'not at least'} "
            f"{high if after.contribution[i] > high else low}"
            for i in after.misses
        ]
        values = [c for c in after.contribution.values() if 0 < c < math.inf]
        spread = max(values) / min(values) if values else 1.0
        if found and spread > high / low:
            found.append(
                f"no gate fits all layers: their contributions differ {spread:.1f}-fold at scale "
                f"{self.scale:g}, the band only {high / low:g}-fold"
            )
        if after.too_loud:
            found.append(
                f"first loss {after.loss:.3g} exceeds the loss without the signal, "
                f"{after.loss_without:.3g}, by more than {EXTRA_LOSS} nats/token"
            )
        if after.extra_loss is None:
            found.append("the first loss was not compared: the batches have no labels")
        return found
