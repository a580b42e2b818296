"""What turning each scale and gate changes."""

import numpy as np
from rich.console import RenderableType

from probes.findings.facts import Facts
from safe_probe.views.table import number, table


def sensitivity_view(facts: Facts) -> RenderableType:
    """Elasticity of what follows each dial, and the share of logits that differ."""
    view = table(
        "dials, and what follows them (1: in proportion, 0: cancelled)",
        "dial", "layer", "value", "follows", "logits changed", "by",
    )  # fmt: skip
    for r in facts.all("sensitivity", "strength"):
        get = lambda s, c=r.component, i=r.layer: facts.value("sensitivity", c, s, i)  # noqa: E731
        view.add_row(
            "gate" if r.part == "gate" else r.detail.removeprefix("projector."),
            "" if r.layer is None else str(r.layer), number(r.value),
            _follows(facts, r.component, r.layer), number(get("changed_logits"), ".1%"),
            number(get("relative_change_logits"), ".2g"),
        )  # fmt: skip
    return view


def _follows(facts: Facts, component: str, layer: int | None) -> str:
    """Each place with its elasticity; of the branches, which have one per layer, the median."""
    own = layer is not None
    parts = []
    for place in ("tokens", "branch", "contribution"):
        found = [
            r.value for r in facts.all("sensitivity", f"elasticity_{place}")
            if r.component == component and (r.layer == layer or not own)
        ]  # fmt: skip
        if found:
            parts.append(f"{place} {number(float(np.median(found)), '.2f')}")
    return ", ".join(parts) or "-"
