"""The runs of the case study: the seed's two configurations and what lies between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.follow_up import flat
from configs.model_configs import get_config
from configs.overrides import apply_values
from configs.schema import RunConfig

FIXES: dict[str, tuple[str, ...]] = {
    "capacity": (
        "model.fusion.layers", "model.fusion.lora_rank", "model.projector.num_tokens",
    ),
    "scale": ("model.projector.scale",),
    "gate": ("model.fusion.gate_init", "model.fusion.gate_max"),
    "no warm-up": ("model.fusion.gate_warmup_steps",),
    "rates": ("optim.lr_projector", "optim.lr_adapter", "retention.variant"),
}  # fmt: skip
"""The five fixes of Phase 1, each by the values it changes. Source: seed, sections 1 to 5."""
SEEDS: dict[str, tuple[int, ...]] = {
    "phase1": (0, 1, 2), "phase1-float32": (1, 2), "phase1-without-scale": (0, 1, 2),
    "full-short-warm-up": (0, 1, 2), "full-with-capacity-short-warm-up": (0, 1, 2),
    "full-with-gate-short-warm-up": (0, 1, 2), "calibrated": (0, 1, 2),
    "calibrated-float32": (1, 2),
}  # fmt: skip
"""Of the variants that the conclusions rest on; all others are run with seed 0."""
_FLOAT32 = {"model.dtype": "float32", "optim.precision": "no"}
SHORT_WARMUP = {"model.fusion.gate_warmup_steps": 57}
"""The share of 224 steps that the seed's 2,000 are of 7,800 (AudioCaps, 20 epochs of 128 clips)."""
_SKIP = {"model.fusion.skip_first_token": True}
_RESAMPLER = {"model.projector.kind": "resampler"}


@dataclass(frozen=True)
class Variant:
    """One configuration of the case study."""

    name: str
    """Name of its runs' folders, with the seed behind it."""
    title: str
    """What the table calls it."""
    base: str = "phase1"
    """Configuration that it changes."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys and their values."""
    calibrated: bool = False
    """Whether scale and gate are those that ``safe-probe calibrate`` proposes for it."""
    layer_norms: bool = False
    """Whether a LayerNorm follows the projector's scale, and another one the gate."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that it is run with."""
        return SEEDS.get(self.name, (0,))

    @property
    def config(self) -> RunConfig:
        """The configuration, made for the seed's backbone, before any calibration."""
        return apply_values(get_config(self.base), self.values)


def _without(fix: str) -> Variant:
    baseline = flat(get_config("full"))
    title = "phase1 with the warm-up" if fix == "no warm-up" else f"phase1 without {fix}"
    return Variant(
        f"phase1-without-{_slug(fix)}", title,
        values={key: baseline[key] for key in FIXES[fix]},
    )  # fmt: skip


def _with(*fixes: str) -> Variant:
    phase1 = flat(get_config("phase1"))
    title = " and ".join(fixes)
    return Variant(
        f"full-with-{_slug(title)}", f"baseline with {title}", base="full",
        values={key: phase1[key] for fix in fixes for key in FIXES[fix]},
    )  # fmt: skip


def _warmed_up(variant: Variant) -> Variant:
    return Variant(
        f"{variant.name}-short-warm-up", f"{variant.title}, warm-up to scale", variant.base,
        values={**variant.values, **SHORT_WARMUP},
    )  # fmt: skip


def _slug(title: str) -> str:
    return title.replace(" ", "-")


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("full", "baseline (full)", base="full"),
        Variant("phase1", "phase1, all five fixes"),
        Variant("phase1-float32", "phase1 in float32", values=_FLOAT32),
        *map(_without, FIXES),
        *map(_with, FIXES),
        _with("rates", "no warm-up"),
        _warmed_up(Variant("full", "baseline", base="full")),
        *(_warmed_up(_with(fix)) for fix in FIXES if fix != "no warm-up"),
        _warmed_up(Variant("phase1", "phase1")),
        Variant("calibrated", "phase1, calibrated", calibrated=True),
        Variant("calibrated-float32", "calibrated in float32", values=_FLOAT32, calibrated=True),
        Variant("layer-norms", "phase1 with both LayerNorms", layer_norms=True),
        Variant("resampler", "resampler, calibrated", values=_RESAMPLER, calibrated=True),
        Variant(
            "resampler-local", "resampler of local features, calibrated",
            values=_RESAMPLER | {"model.audio_features": "local"}, calibrated=True,
        ),
        Variant(
            "calibrated-skip-first", "calibrated, position 0 left alone", values=_SKIP,
            calibrated=True,
        ),
        Variant("blind", "phase1, one embedding for all", values={"data.audio": "mean"}),
    )
}  # fmt: skip
"""Every variant by name, in the order of the table."""
