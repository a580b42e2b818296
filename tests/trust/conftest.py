"""The workshop of trials, and the figures that each of them ends with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))  # `trials` is used here and in processes of its own
LONG = (pytest.mark.trust, pytest.mark.slow, pytest.mark.timeout(3 * 3600))
SHARE = float(os.environ.get("SHARE", "1"))
"""Of the long form's repetitions: `make trust SHARE=0.1`."""
SMALL = ("saves", "owners")
"""Trials that need no torch."""
_figures: list[str] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """@pytest.mark.sizes(fast, long): the test's ``size``, the long one only by `make trust`.

    A fast one of None: by `make trust` alone. A long one below the fast one is no number of
    repetitions but of cases that one of them takes together, and SHARE leaves it alone.
    """
    mark = metafunc.definition.get_closest_marker("sizes")
    if mark is not None:
        fast, long = mark.args
        if fast is None or long > fast:
            long = max(fast or 1, round(SHARE * long))
        short = [] if fast is None else [fast]
        metafunc.parametrize("size", [*short, pytest.param(long, marks=LONG)])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Every figure that was measured, in one place."""
    if _figures:
        terminalreporter.section("trust: what was done and what came of it")
        for line in _figures:
            terminalreporter.write_line(line)


@pytest.fixture
def figure() -> Callable[[str], None]:
    """figure(text): a line for the end of the test run."""
    return _figures.append


class Workshop:
    """A process that forks once per trial, started when it is first asked; see its module."""

    def __init__(self, environment: dict[str, str], *modules: str) -> None:
        self.command = [sys.executable, "-m", "trials.workshop", *modules]
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process: subprocess.Popen[str] | None = None

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to a job."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=self.environment,
            )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job, default=str) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """Let the process end."""
        if self.process is not None:
            self.process.communicate(timeout=60)


@pytest.fixture(scope="session")
def workshops(repo_root: Path, tiny_cache: Path) -> Iterator[dict[str, Workshop]]:
    """A small process, and one with torch and all packages."""
    java = tiny_cache / "bin"  # says that there is no Java, as in the tiny runs
    environment = {
        "PYTHONPATH": os.pathsep.join([str(repo_root), str(HERE)]),
        "SAFE_PROBE_CACHE": str(tiny_cache), "TOKENIZERS_PARALLELISM": "false",
        "PATH": f"{java}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    found = {
        "small": Workshop(environment, "safe.training.run_directory"),
        "large": Workshop(
            environment, "safe.training.run", "safe.cli", "safe_probe.cli", "probes.diagnosis",
            "reports.report",
        ),
    }  # fmt: skip
    yield found
    for workshop in found.values():
        workshop.close()


Trial = Callable[..., dict[str, Any]]


@pytest.fixture
def trial(workshops: dict[str, Workshop]) -> Trial:
    """trial("saves:kill", patch=None, folder=..., rounds=...) -> the trial's figures."""

    def run(name: str, *, patch: str | None = None, **options: Any) -> dict[str, Any]:
        size = "small" if name.partition(":")[0] in SMALL else "large"
        answer = workshops[size].ask({"trial": name, "patch": patch, "options": options})
        assert "error" not in answer, answer["error"]
        assert answer.pop("network") == 0
        return answer

    return run
