"""A test of the suite itself, run in this process: does it fail?"""

import os
from pathlib import Path
from typing import Any

import pytest


class _Count:
    """Counts what pytest reports."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        self.failed += report.failed


def run(root: str, test: str, folder: str) -> dict[str, int]:
    """Run ``test`` (FILE::NAME below ``root``) and count its cases, up to the first that fails."""
    os.chdir(root)
    count = _Count()
    ended = pytest.main(
        [test, "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain",
         "--basetemp", str(Path(folder, "tests"))],
        plugins=[count],
    )  # fmt: skip
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {ended!r} for {test}")
    return {"passed": count.passed, "failed": count.failed}
