"""What a process holds does not grow with the steps it takes and the probes it runs."""

from pathlib import Path
from typing import Any

import pytest

LEAKS = ("files", "threads", "hooks", "temp_files", "megabytes")


def check(found: dict[str, float], what: str, figure: Any) -> None:
    grown = ", ".join(f"{found[key]:+g} {key.replace('_', ' ')}" for key in LEAKS)
    figure(f"leaks over {found['rounds']} {what}: {grown}")
    assert [found[key] for key in LEAKS[:-1]] == [0, 0, 0, 0]
    assert found["megabytes"] < 40


@pytest.mark.sizes(60, 2000)
def test_training_steps(size: int, trial: Any, tiny_run: Any, figure: Any) -> None:
    check(trial("leaks:steps", config=tiny_run.config.to_dict(), rounds=size), "steps", figure)


@pytest.mark.sizes(50, 300)
def test_diagnoses(size: int, trial: Any, repo_root: Path, figure: Any) -> None:
    toy = repo_root / "tests" / "probes" / "conftest.py"
    check(trial("leaks:probes", toy=toy, rounds=size), "diagnoses", figure)
