"""The numbers of a probe that has no view of its own, as those of other packages."""

from rich.console import RenderableType

from probes.findings.facts import Facts
from safe_probe.views.table import number, table


def records_view(facts: Facts, probe: str) -> RenderableType:
    """The newest record of every component, layer and statistic of ``probe``."""
    view = table(probe, "component", "layer", "<statistic", "value", "<unit")
    newest = {(r.component, r.layer, r.statistic): r for r in facts.history if r.probe == probe}
    for record in newest.values():
        layer = "-" if record.layer is None else str(record.layer)
        view.add_row(record.component, layer, record.statistic, number(record.value), record.unit)
    return view
