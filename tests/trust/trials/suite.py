"""A test of the suite itself, run in this process: does it fail?"""

import os
from pathlib import Path

import pytest


def run(root: str, test: str, folder: str) -> dict[str, bool]:
    """Run ``test`` (FILE::NAME below ``root``), up to the first of its cases that fails."""
    os.chdir(root)
    ended = pytest.main(
        [test, "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain",
         "--basetemp", str(Path(folder, "tests"))]
    )  # fmt: skip
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {ended!r} for {test}")
    return {"failed": ended == pytest.ExitCode.TESTS_FAILED}
