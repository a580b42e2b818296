"""Measurements as tables with small bars, for 80 columns."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from probes.findings.facts import Facts
from probes.ledger import State

_BAR = 10


def bar(share: float, width: int = _BAR) -> str:
    """A bar for a share of 0 to 1; a missing or infinite one is empty."""
    if not math.isfinite(share):
        return ""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8]).strip()


def table(title: str, *columns: str) -> Table:
    """An empty table; the first column is text, the others are numbers, a ``bar`` is text."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        left = index == 0 or column.startswith("<")
        side: Literal["left", "right"] = "left" if left else "right"
        made.add_column(column.removeprefix("<"), justify=side, no_wrap=index == 0)
    return made


def number(value: float | None, form: str = ".3g") -> str:
    """A number, or a dash for what was not measured."""
    return "-" if value is None else format(value, form)


def magnitude_view(facts: Facts) -> RenderableType:
    """Text, signal and contribution by layer."""
    spliced = facts.value("magnitude", "signal", "tokens") is not None
    rows = _spliced(facts) if spliced else _fused(facts)
    projector = _line(
        "projector",
        ("RMS/element", facts.value("magnitude", "projector", "rms_median")),
        ("L2/token", facts.value("magnitude", "projector", "l2_median")),
        ("max", facts.value("magnitude", "projector", "max_abs")),
        ("saturated", facts.value("magnitude", "projector", "saturated")),
        ("cosine between clips", facts.value("magnitude", "projector", "cosine_between_clips")),
    )
    return Group(rows, projector)


def _fused(facts: Facts) -> Table:
    view = table(
        "magnitude: L2 per text token (median), and what the signal adds to it",
        "layer", "text", "p5-p95", "sinks", "x mean", "branch", "contribution", "<0 .. 1",
    )  # fmt: skip
    get = lambda c, s, i: facts.value("magnitude", c, s, i)  # noqa: E731
    layers = [None, *facts.layers("magnitude", "fusion", "calls")]
    for i in layers:
        contribution = get("fusion", "contribution_median", i)
        low, high = get("text", "l2_p5", i), get("text", "l2_p95", i)
        view.add_row(
            "input" if i is None else str(i), number(get("text", "l2_median", i)),
            f"{number(low)}-{number(high)}", number(get("text", "sinks", i), ".0f"),
            number(get("text", "sink_inflation", i)), number(get("fusion", "branch_ratio", i)),
            number(contribution), bar(contribution or 0.0),
        )  # fmt: skip
    return view


def _spliced(facts: Facts) -> Table:
    view = table(
        "magnitude: L2 per token (median) of text and spliced signal",
        "layer", "text", "signal", "signal/text", "<log scale, 1 .. 100",
    )  # fmt: skip
    for i in [None, *facts.layers("magnitude", "text", "l2_median")]:
        ratio = facts.value("magnitude", "signal", "l2_to_text", i)
        view.add_row(
            "input" if i is None else str(i),
            number(facts.value("magnitude", "text", "l2_median", i)),
            number(facts.value("magnitude", "signal", "l2_median", i)), number(ratio),
            bar(math.log10(ratio) / 2 if ratio else 0.0),
        )  # fmt: skip
    return view


def gates_view(facts: Facts) -> RenderableType:
    """Every gate with its state."""
    view = table(
        "gates", "layer", "raw", "value", "effective", "slope", "trainable", "lr", "gradient",
        "<0 .. 1",
    )  # fmt: skip
    get = lambda s, i: facts.value("gates", "gate", s, i)  # noqa: E731
    for i in facts.layers("gates", "gate", "raw"):
        view.add_row(
            str(i), number(get("raw", i)), number(get("value", i)), number(get("effective", i)),
            number(get("slope", i)), "yes" if get("trainable", i) else "no",
            number(get("lr", i), ".2g"), number(get("gradient", i), ".2g"),
            bar(abs(get("effective", i) or 0.0)),
        )  # fmt: skip
    outer = facts.value("gates", "gate", "outer_gate")
    return view if outer is None else Group(view, _line("outer gate", ("factor", outer)))


def gradflow_view(facts: Facts) -> RenderableType:
    """The ledger: every declared component, also those without a gradient."""
    view = table(
        "gradients before clipping; step: relative size of one update",
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


def influence_view(facts: Facts) -> RenderableType:
    """Controls and left-out layers against the own signal."""
    own = facts.value("influence", "signal:own", "loss")
    view = table(
        f"influence: own loss {number(own)} nats/token; each control against it",
        "control", "loss", "change", "+-", "KL", "logits changed", "<KL, log",
    )  # fmt: skip
    for r in facts.all("influence", "changed"):
        if r.component == "signal:repeat":
            continue
        name = r.component if r.layer is None else f"without layer {r.layer}"
        values = [
            facts.value("influence", r.component, s, r.layer)
            for s in ("loss", "loss_change", "loss_change_error", "kl")
        ]
        kl = values[3] or 0.0
        view.add_row(
            name, number(values[0]), number(values[1], "+.3g"), number(values[2], ".2g"),
            number(values[3], ".2g"), f"{r.value:.1%}",
            bar(1 + math.log10(kl) / 8 if kl > 0 else 0.0),
        )  # fmt: skip
    return view


def parameters_view(facts: Facts) -> RenderableType:
    """Counts by component."""
    view = table(
        "parameters", "component", "total", "trainable", "in optimizer", "lr", "bytes",
    )  # fmt: skip
    rows = facts.all("parameters", "total")
    for r in rows:
        get = lambda s, c=r.component: facts.value("parameters", c, s)  # noqa: E731
        trainable = get("trainable") or 0
        rates = {get("lr_min"), get("lr_max")} - {None}
        view.add_row(
            r.component, f"{r.value:,.0f}", f"{trainable:,.0f}",
            number(get("in_optimizer"), ",.0f"),
            "-".join(f"{rate:.2g}" for rate in sorted(x for x in rates if x is not None)) or "-",
            size(get("bytes")),
        )  # fmt: skip
    return view


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


def size(count: float | None) -> str:
    """Bytes with a unit."""
    if count is None:
        return "-"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def _line(name: str, *values: tuple[str, float | None]) -> Text:
    shown = [f"{what} {value:.3g}" for what, value in values if value is not None]
    return Text(f"{name}: {', '.join(shown)}")
