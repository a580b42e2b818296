"""Every gate with its state."""

from rich.console import Group, RenderableType
from rich.text import Text

from probes.findings.facts import Facts
from safe_probe.views.table import bar, number, table


def gates_view(facts: Facts) -> RenderableType:
    """Value, slope and learning by layer, and the gate over all layers."""
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
    return view if outer is None else Group(view, Text(f"outer gate: factor {number(outer)}"))
