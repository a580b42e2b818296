"""Measurements on any torch model: one probe per file, each returning records.

How to add a probe
------------------

1. Write ``probes/<name>.py`` with one public function::

       def measure(context: Context) -> list[Record]:
           rows = context.rows("<name>")
           with context.session() as session:  # puts the model back as it was found
               session.watch(context.path.projector, look)  # look(call), see session.Call
               for batch in context.batches:
                   session.forward(batch)
           rows.add("projector", "l2_median", value, "L2/token")
           return rows.records

   A quantity that was not measured has no row; NaN and Inf are rows like any other. Hooks keep
   numbers, never activations. A probe only measures: judgement belongs to the findings.
2. Add ``<name>`` to :data:`PROBES` below. In another package: an entry point of the group
   ``safe_probe.probes`` that is the function (docs/extend.md).
3. Test every statistic against plain NumPy or autograd, and that the model is as found.

This module imports neither torch nor a probe, so that ``--help`` and the reports stay quick.
"""

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from configs.plugins import ExtensionPoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from probes.context import Context
    from probes.record import Record

PROBES: tuple[str, ...] = (
    "parameters",
    "modules",
    "magnitude",
    "gates",
    "influence",
    "independence",
    "generation",
    "sensitivity",
    "gradflow",
    "attention",
    "data",
)
"""Names of the probes, in the order in which ``check`` runs them."""
ADDED = ExtensionPoint("safe_probe.probes", "probe", PROBES)
"""Those of other packages, which ``check`` runs after them."""


def all_probes() -> tuple[str, ...]:
    """The names of all probes, also of other packages; nothing is imported.

    Raises:
        PluginError: two probes have the same name.
    """
    return PROBES + ADDED.names()


def get_probe(name: str) -> "Callable[[Context], list[Record]]":
    """The ``measure`` function of a probe.

    Raises:
        ProbeError: there is no such probe.
        PluginError: it is another package's, and cannot be imported.
    """
    if name in PROBES:
        measure: Callable[[Context], list[Record]] = import_module(f"probes.{name}").measure
        return measure
    known = all_probes()
    if name in known:
        return partial(_measure_added, name, ADDED.load(name))
    from configs.errors import did_you_mean
    from probes.errors import ProbeError

    hint = did_you_mean(name, known)
    raise ProbeError(f"unknown probe {name!r}; probes are {', '.join(known)}{hint}")


def _measure_added(
    name: str, measure: "Callable[[Context], list[Record]]", context: "Context"
) -> "list[Record]":
    """The records of another package's probe, which must be records, and its own."""
    from probes.record import Record

    try:
        records = list(measure(context))
    except Exception as error:
        raise ADDED.broken(name, error) from error
    if not all(isinstance(record, Record) and record.probe == name for record in records):
        raise ADDED.broken(name, f"it must return records of context.rows({name!r})")
    return records
