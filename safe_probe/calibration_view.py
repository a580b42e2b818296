"""A calibration's proposal for people."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from probes.proposal import Proposal
from safe_probe.views import bar, number, table


def calibration_view(proposal: Proposal, file: Path | None = None) -> RenderableType:
    """Contribution and loss before and after, the values to set, and where they are written.

    Args:
        proposal: what was measured and found.
        file: the config file that was written, if any.
    """
    before, after = proposal.before, proposal.after
    view = table(
        "contribution at the start (wanted: 0.1-0.3 in every fusion layer)",
        "layer", "before", "after", "<after, 0 .. 1",
    )  # fmt: skip
    for layer, value in after.contribution.items():
        view.add_row(str(layer), number(before.contribution.get(layer)), number(value), bar(value))
    losses = Text(
        f"first loss {number(before.loss)} -> {number(after.loss)} nats/token, "
        f"without the signal {number(after.loss_without)}"
    )
    state = "verified on a fresh model" if proposal.satisfied else "the best that was measured"
    values = Text.assemble(
        f"\nproposal ({state}, {proposal.trials} settings measured):\n",
        *(f"  --set {value}" for value in proposal.set_values),
    )
    written = f"written to {file}" if file else "--output FILE writes them as a config file"
    notes = [Text(line, "yellow") for line in proposal.lines]
    return Group(view, losses, *notes, values, Text(written))
