"""The public API of safe-probe: find out which link of the signal path is broken.

    import safe_probe

    diagnosis = safe_probe.diagnose(model, batches, optimizer=optimizer)
    diagnosis.verdict, diagnosis.findings, diagnosis.records

and read what a training left behind:

    run = safe_probe.read_run("runs/latest")
    run.frame(), run.log.frame(), safe_probe.Report.of(run).verdict

Names are loaded when they are first used, so that the command line answers without torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.context import Context
    from probes.diagnosis import Diagnosis, assert_signal, diagnose
    from probes.findings.finding import Finding, Severity
    from probes.findings.settings import Settings
    from probes.record import Record, RecordLog
    from probes.signal_path import GatePath, SignalPath
    from reports.report import Report
    from reports.run import read_run

__version__ = version("safe-probe")
__all__ = [
    "Context",
    "Diagnosis",
    "Finding",
    "GatePath",
    "Record",
    "RecordLog",
    "Report",
    "Settings",
    "Severity",
    "SignalPath",
    "assert_signal",
    "diagnose",
    "read_run",
]
_HOMES = {
    "Context": "probes.context",
    "Diagnosis": "probes.diagnosis",
    "Finding": "probes.findings.finding",
    "GatePath": "probes.signal_path",
    "Record": "probes.record",
    "RecordLog": "probes.record",
    "Report": "reports.report",
    "Settings": "probes.findings.settings",
    "Severity": "probes.findings.finding",
    "SignalPath": "probes.signal_path",
    "assert_signal": "probes.diagnosis",
    "diagnose": "probes.diagnosis",
    "read_run": "reports.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'safe_probe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
