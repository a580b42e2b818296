"""What the rules look at: the newest value of every number in a log of records."""

from collections.abc import Iterable
from typing import NamedTuple

from probes.record import Record

Place = tuple[str, int | None]


class Facts:
    """The newest records, by probe and statistic.

    Args:
        records: in the order in which they were measured.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.history: list[Record] = list(records)
        """Every record, oldest first."""
        self._newest: dict[tuple[str, str], dict[Place, Record]] = {}
        for r in self.history:
            self._newest.setdefault((r.probe, r.statistic), {})[r.component, r.layer] = r

    def value(
        self, probe: str, component: str, statistic: str, layer: int | None = None
    ) -> float | None:
        """The newest value, or None when it was not measured."""
        found = self._newest.get((probe, statistic), {}).get((component, layer))
        return None if found is None else found.value

    def layers(self, probe: str, component: str, statistic: str) -> dict[int, float]:
        """The newest value by layer, ascending; without the one that has no layer."""
        found = self._newest.get((probe, statistic), {})
        return {
            layer: found[name, layer].value
            for name, layer in sorted(found, key=lambda place: (place[0], place[1] or 0))
            if name == component and layer is not None
        }

    def all(self, probe: str, statistic: str) -> list[Record]:
        """The newest record of every component and layer."""
        return list(self._newest.get((probe, statistic), {}).values())

    def step(self, probe: str) -> int:
        """Optimizer steps done when ``probe`` last measured; 0 when it never did."""
        return max((r.step for r in self.history if r.probe == probe), default=0)


class Hit(NamedTuple):
    """Where a rule fired; None leaves what the rule says in general."""

    component: str
    layer: int | None
    measured: str
    severity: int | None = None
    remedy: str | None = None
