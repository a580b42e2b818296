"""What there is to train, against what was stated, and in how much memory."""

from collections.abc import Iterable

from rich.console import RenderableType

from probes.findings.facts import Facts
from safe_probe.views.table import bar, size, table


def parameters_view(facts: Facts) -> RenderableType:
    """Counts by component; how many of the trainable ones the optimizer holds, at which rate."""
    view = table("parameters", "component", "total", "trainable", "optimizer", "lr", "bytes")
    for r in facts.all("parameters", "total"):
        get = lambda s, c=r.component: facts.value("parameters", c, s)  # noqa: E731
        trainable = get("trainable") or 0
        rates = sorted({rate for end in ("min", "max") if (rate := get(f"lr_{end}")) is not None})
        view.add_row(
            r.component, f"{r.value:,.0f}", f"{trainable:,.0f}",
            _held(get("in_optimizer"), trainable), "-".join(f"{rate:.2g}" for rate in rates) or "-",
            size(get("bytes")),
        )  # fmt: skip
    return view


def _held(count: float | None, trainable: float) -> str:
    """In words where these say it all; a dash where there is nothing to hold, or no optimizer."""
    if count is None or not (count or trainable):
        return "-"
    return {trainable: "all", 0: "none"}.get(count, f"{count:,.0f}")


def claims_view(facts: Facts, limit: float) -> RenderableType:
    """Stated against measured."""
    view = table("stated and measured", "what", "stated", "measured", "ratio", "<verdict")
    for r in facts.all("claims", "stated"):
        measured = facts.value("claims", r.component, "measured")
        if measured is None:
            continue
        ratio = measured / r.value
        agrees = abs(ratio - 1) <= limit
        name = {"fusion": "LoRA of the fusion", "model": "all trainable"}.get(
            r.component, r.component
        )
        view.add_row(
            name, f"{r.value:,.0f}", f"{measured:,.0f}", f"{ratio:.3f}",
            "agrees" if agrees else f"off by a factor of {max(ratio, 1 / ratio):.2f}",
        )  # fmt: skip
    low, high = (facts.value("claims", "memory", f"stated_{end}") for end in ("low", "high"))
    planned = facts.value("claims", "memory", "measured")
    if low is not None and high is not None and planned is not None:
        inside = low <= planned <= high
        view.add_row(
            "memory", f"{low / 1e9:.0f}-{high / 1e9:.0f} GB", f"{planned / 1e9:.1f} GB",
            f"{planned / low:.3f}", "agrees" if inside else "outside the stated range",
        )  # fmt: skip
    return view


def memory_view(parts: Iterable[tuple[str, int, str]]) -> RenderableType:
    """The memory plan."""
    parts = list(parts)
    total = sum(count for _, count, _ in parts)
    view = table("memory plan of one training process", "part", "GB", "<", "<formula")
    for name, count, formula in parts:
        view.add_row(name, f"{count / 1e9:.2f}", bar(count / total, 8), formula)
    view.add_row("total", f"{total / 1e9:.2f}", "", "CUDA's own context (about 1 GB) not counted")
    return view
