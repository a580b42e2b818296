"""The fixture that users' own tests get with the package."""

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import safe_probe


def test_fixture_is_the_public_function(assert_signal: Any) -> None:
    assert assert_signal is safe_probe.assert_signal


def test_plugin_is_light() -> None:
    (module,) = {e.value for e in entry_points(group="pytest11") if e.name == "safe-probe"}
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
