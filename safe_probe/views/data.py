"""What the batches hold."""

from rich.console import RenderableType

from probes.findings.facts import Facts
from safe_probe.views.table import number, table

_LINES = (
    ("texts", "text", "rows", ".0f", "in all batches"),
    ("supervised tokens per batch", "text", "supervised_mean", ".3g", "the loss is their mean"),
    ("texts without any label", "text", "rows_all_ignored", ".1%", ""),
    ("tokens before the first label", "text", "first_supervised", ".3g", "the prompt"),
    ("captions with an end", "text", "ends_with_eos", ".1%", "the others are cut"),
    ("padding", "text", "padding", ".1%", "of all positions"),
    ("audio tokens per clip", "signal", "tokens", ".3g", "that the projector makes"),
    ("silent clips", "signal", "silent", ".1%", "all zeros"),
    ("clips equal to another", "signal", "identical", ".1%", "bit for bit, in their batch"),
    ("cosine between clips", "signal", "cosine_between_clips", ".3g", "1: all the same"),
)
"""Words, component, statistic, format and remark of each line."""


def data_view(facts: Facts) -> RenderableType:
    """Labels, padding and clips, one line each."""
    view = table("data", "what", "value", "<")
    for words, component, statistic, form, remark in _LINES:
        value = facts.value("data", component, statistic)
        if value is not None:
            view.add_row(words, number(value, form), remark)
    return view
