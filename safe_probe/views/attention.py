"""How the fusion attends to the signal's tokens."""

from rich.console import RenderableType

from probes.findings.facts import Facts
from safe_probe.views.table import bar, number, table


def attention_view(facts: Facts) -> RenderableType:
    """Entropy, one-hot rows and reach by layer, and how far the heads differ."""
    view = table(
        "attention over audio tokens; entropy: 1 is uniform, 0 one-hot",
        "layer", "tokens", "in use", "entropy", "of heads", "max", "one-hot", "reach", "<entropy",
    )  # fmt: skip
    for i in facts.layers("attention", "fusion", "calls"):
        get = lambda s, i=i: facts.value("attention", "fusion", s, i)  # noqa: E731
        heads = [
            r.value for r in facts.all("attention", "entropy_relative")
            if r.detail.startswith("head") and r.layer == i
        ]  # fmt: skip
        spread = f"{min(heads):.2f}-{max(heads):.2f}" if heads else "-"
        view.add_row(
            str(i), number(get("tokens")), number(get("tokens_in_use")),
            number(get("entropy_relative"), ".2f"), spread, number(get("max_weight"), ".2f"),
            number(get("one_hot"), ".1%"), number(get("reach"), ".1%"),
            bar(get("entropy_relative") or 0.0),
        )  # fmt: skip
    return view
