"""The public surface: exactly these names, loaded when used."""

import subprocess
import sys

import pytest

import safe_probe


def test_names() -> None:
    assert safe_probe.__all__ == [
        "Context", "Diagnosis", "Finding", "GatePath", "Record", "RecordLog", "Report",
        "Settings", "Severity", "SignalPath", "assert_signal", "diagnose", "read_run",
    ]  # fmt: skip
    for name in safe_probe.__all__:
        assert getattr(safe_probe, name).__name__ == name
    assert set(safe_probe.__all__) <= set(dir(safe_probe))


def test_import_is_light() -> None:
    code = "import sys, safe_probe; assert 'torch' not in sys.modules and safe_probe.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'diagnosis'"):
        _ = safe_probe.diagnosis
