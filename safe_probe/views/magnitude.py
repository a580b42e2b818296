"""The signal next to the text, at the input and at every layer where the two meet."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from probes.findings.facts import Facts
from safe_probe.views.table import bar, number, table

_BAR = 6


def magnitude_view(facts: Facts, vision: Facts | None = None) -> RenderableType:
    """Text, signal and contribution by layer.

    Args:
        facts: of the model.
        vision: of the same backbone, with its own pixels as the signal.
    """
    spliced = facts.value("magnitude", "signal", "tokens") is not None
    rows = _spliced(facts) if spliced else _fused(facts, vision)
    get = lambda statistic: facts.value("magnitude", "projector", statistic)  # noqa: E731
    values = {
        "RMS/element": get("rms_median"), "L2/token": get("l2_median"), "max": get("max_abs"),
        "saturated": get("saturated"), "cosine between clips": get("cosine_between_clips"),
    }  # fmt: skip
    shown = [f"{what} {number(value)}" for what, value in values.items() if value is not None]
    return Group(rows, Text(f"projector: {', '.join(shown)}"))


def vision_view(facts: Facts, vision: Facts | None, backbone: str, trained: bool) -> Text:
    """Vision beside audio in one sentence, and what to think of a random vision tower.

    Args:
        facts: of the model.
        vision: of the backbone's own pixels, when they stand beside audio.
        backbone: its name.
        trained: whether its vision tower was trained with it.
    """
    said = Text()
    if vision is not None:
        pictures, sound = (number(ratio_to_text(f)) for f in (vision, facts))
        said.append(f"at the input, vision tokens are {pictures}x text here, audio {sound}x")
    if not trained:
        said.append("\n" if said else "")
        said.append(
            f"the vision tower of {backbone} is tiny and random: its numbers are no reference and "
            "no evidence; only a LLaVA that was trained with pictures gives one",
            "yellow",
        )
    return said


def ratio_to_text(facts: Facts, layer: int | None = None) -> float | None:
    """L2 of the signal's tokens over that of the text at a place; medians of both."""
    fused = facts.value("magnitude", "projector", "l2_to_text", layer)
    return facts.value("magnitude", "signal", "l2_to_text", layer) if fused is None else fused


def _fused(facts: Facts, vision: Facts | None) -> Table:
    view = table(
        "magnitude: L2 per text token (median); audio tokens"
        + (", vision tokens" if vision else "")
        + " and the\nbranch as multiples of it; contribution: the gated branch",
        "layer", "text", "p5-p95", "sinks", "audio", *(["vision"] if vision else []), "branch",
        "contribution", "<0 .. 1",
    )  # fmt: skip
    get = lambda c, s, i: facts.value("magnitude", c, s, i)  # noqa: E731
    layers: Sequence[int | None] = [None, *facts.layers("magnitude", "fusion", "calls")]
    for i in layers:
        contribution = get("fusion", "contribution_median", i)
        view.add_row(
            "input" if i is None else str(i), number(get("text", "l2_median", i)),
            f"{number(get('text', 'l2_p5', i), '.2g')}-{number(get('text', 'l2_p95', i), '.2g')}",
            _sinks(get("text", "sinks", i), get("text", "sink_inflation", i)),
            number(ratio_to_text(facts, i)),
            *([number(ratio_to_text(vision, i))] if vision else []),
            number(get("fusion", "branch_ratio", i)), number(contribution),
            bar(contribution or 0.0, _BAR),
        )  # fmt: skip
    return view


def _sinks(count: float | None, inflation: float | None) -> str:
    """How many sink tokens there are, and by what factor they would inflate the mean."""
    if not count or inflation is None:
        return number(count, ".0f")
    return f"{count:.0f} x{inflation:.2g}"


def _spliced(facts: Facts) -> Table:
    view = table(
        "magnitude: L2 per token (median) of text and spliced signal",
        "layer", "text", "signal", "signal/text", "<log scale, 1 .. 100",
    )  # fmt: skip
    for i in [None, *facts.layers("magnitude", "text", "l2_median")]:
        ratio = ratio_to_text(facts, i)
        view.add_row(
            "input" if i is None else str(i),
            number(facts.value("magnitude", "text", "l2_median", i)),
            number(facts.value("magnitude", "signal", "l2_median", i)), number(ratio),
            bar(math.log10(ratio) / 2 if ratio else 0.0),
        )  # fmt: skip
    return view
