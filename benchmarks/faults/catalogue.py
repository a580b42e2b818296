"""All faults: importing the families enters them into the registry."""

from benchmarks.faults import (
    data_faults,
    gate_faults,
    optimizer_faults,
    projector_faults,
    wiring_faults,
)
from benchmarks.faults.registry import FAULTS

FAMILIES = (projector_faults, wiring_faults, gate_faults, optimizer_faults, data_faults)
__all__ = ["FAMILIES", "FAULTS"]
