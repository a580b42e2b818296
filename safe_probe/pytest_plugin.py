"""The pytest fixture ``assert_signal``, known to pytest wherever safe-probe is installed."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from probes.diagnosis import Diagnosis


@pytest.fixture
def assert_signal() -> "Callable[..., Diagnosis]":
    """:func:`safe_probe.assert_signal`, to fail a test when a model's signal path is broken.

    ``def test_path(assert_signal): assert_signal(model, batch, path, ignore=["SP5"])``
    """
    import safe_probe

    return safe_probe.assert_signal
