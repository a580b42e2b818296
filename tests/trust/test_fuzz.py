"""Damaged and hostile input of every kind: a result or a typed error, soon, in little memory."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from trials.fuzz import TARGETS

SLOW = ("run folders",)
"""Of which there are fewer cases."""


@pytest.mark.sizes(200, 2500)
@pytest.mark.parametrize("name", TARGETS)
def test_by_hypothesis(name: str, size: int, tiny_run: Any, figure: Any, tmp_path: Path) -> None:
    target, long = TARGETS[name](tmp_path, tiny_run.folder), size > 200

    @settings(
        max_examples=size // 2 if name in SLOW else size,
        derandomize=not long,  # the long form looks for others every time
        suppress_health_check=list(HealthCheck), database=None,
    )  # fmt: skip
    @given(target.cases)
    def one(case: Any) -> None:
        target.use(case)

    one()
    figure(
        f"fuzzed {name}: {target.count['refused']} refused by a typed error, "
        f"{target.count['taken']} taken, {target.slowest:.2f} s and {target.largest} MB at most"
    )


@pytest.mark.sizes(None, 10_000)
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="needs atheris, absent here: pip install 'safe-probe[fuzz]'",
)
@pytest.mark.parametrize("name", TARGETS)
def test_by_coverage(
    name: str, size: int, tiny_run: Any, figure: Any, repo_root: Path, tmp_path: Path
) -> None:
    cases = size // 10 if name in SLOW else size
    path = os.pathsep.join([str(repo_root), str(repo_root / "tests" / "trust")])
    done = subprocess.run(
        [sys.executable, "-m", "trials.fuzz_by_coverage", name, tmp_path, tiny_run.folder,
         str(cases)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    covered = [line for line in done.stderr.splitlines() if "cov:" in line][-1].split()
    figure(
        f"fuzzed {name} by coverage: {cases} inputs, {found.get('refused', 0)} refused by a typed "
        f"error, {found.get('taken', 0)} taken, {found['slowest']} s and {found['largest']} MB at "
        f"most, {covered[covered.index('cov:') + 1]} branches reached"
    )
