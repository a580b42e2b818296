"""The ledger of gradients."""

import math
from collections.abc import Callable

from rich.console import RenderableType

from probes.findings.facts import Facts
from probes.ledger import State
from safe_probe.views.table import bar, number, table


def gradflow_view(facts: Facts) -> RenderableType:
    """The ledger: every declared component, also those without a gradient."""
    view = table(
        "gradients before clipping; step: relative size of a fresh optimizer's first update",
        "component", "layer", "state", "tensors", "norm", "/weight", "step", "SNR", "<log",
    )  # fmt: skip
    rows = [r for r in facts.all("gradflow", "state") if not r.detail]
    norms = [facts.value("gradflow", r.component, "norm", r.layer) or 0.0 for r in rows]
    top = max((n for n in norms if math.isfinite(n)), default=1.0) or 1.0
    for r, norm in zip(rows, norms, strict=True):
        get = _getter(facts, r.component, r.layer)
        trainable = get("trainable") or 0
        if not trainable and r.component == "decoder" and r.layer is not None:
            continue  # dozens of frozen layers say nothing
        state = State(int(r.value)).name.lower() if trainable or r.value == 0 else "frozen"
        view.add_row(
            r.component, "" if r.layer is None else str(r.layer), state, f"{trainable:.0f}",
            number(norm if trainable else None, ".2g"), number(get("gradient_to_weight"), ".2g"),
            number(get("update_to_weight"), ".1e"), number(get("snr"), ".2g"),
            bar(1 + math.log10(norm / top) / 8 if norm > 0 else 0.0, 6),
        )  # fmt: skip
    return view


def _getter(facts: Facts, component: str, layer: int | None) -> Callable[[str], float | None]:
    return lambda statistic: facts.value("gradflow", component, statistic, layer)
