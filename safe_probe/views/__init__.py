"""Measurements as tables with small bars, for 80 columns; one file for each probe."""

from collections.abc import Callable, Mapping

from rich.console import RenderableType

from probes.findings.facts import Facts
from safe_probe.views.attention import attention_view
from safe_probe.views.data import data_view
from safe_probe.views.gates import gates_view
from safe_probe.views.gradflow import gradflow_view
from safe_probe.views.influence import influence_view
from safe_probe.views.magnitude import magnitude_view, vision_view
from safe_probe.views.parameters import claims_view, memory_view, parameters_view
from safe_probe.views.records import records_view
from safe_probe.views.sensitivity import sensitivity_view
from safe_probe.views.table import bar, number, table

VIEWS: Mapping[str, Callable[[Facts], RenderableType]] = {
    "data": data_view,
    "parameters": parameters_view,
    "magnitude": magnitude_view,
    "gates": gates_view,
    "sensitivity": sensitivity_view,
    "attention": attention_view,
    "gradflow": gradflow_view,
    "influence": influence_view,
}
"""Probe to its view, in the order in which ``check`` shows them."""

__all__ = [
    "VIEWS",
    "bar",
    "claims_view",
    "magnitude_view",
    "memory_view",
    "number",
    "parameters_view",
    "records_view",
    "table",
    "vision_view",
]
