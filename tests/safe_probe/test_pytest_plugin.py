"""The fixture that users' own tests get with the package, by its entry point."""

import subprocess
import sys
from typing import Any

import safe_probe


def test_fixture_is_the_public_function(assert_signal: Any) -> None:
    assert assert_signal is safe_probe.assert_signal


def test_plugin_is_light() -> None:
    code = "import sys, safe_probe.pytest_plugin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
