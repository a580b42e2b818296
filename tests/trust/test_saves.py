"""A save that is killed or refused at any moment: nothing torn, nothing lost, nothing left."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.sizes(500, 5000)
def test_kill_9_at_random_moments(size: int, trial: Any, figure: Any, tmp_path: Path) -> None:
    found = trial("saves:kill", folder=tmp_path, rounds=size)
    figure(
        "kill -9 during back-to-back saves: {kills} kills ({halfway} in the middle of one), "
        "{torn} torn, {lost} lost, {unswept} temporary folders unswept".format(**found)
    )
    assert (found["torn"], found["lost"], found["unswept"]) == (0, 0, 0)
    assert found["halfway"] > size // 4  # else the kills missed the saves, and this shows nothing


@pytest.mark.parametrize(
    ("action", "what"),
    [("kill", "kill -9 before each"), ("full", "no space at each")],
)
def test_every_file_system_call(
    action: str, what: str, trial: Any, figure: Any, tmp_path: Path
) -> None:
    found = trial("saves:at_every_call", folder=tmp_path, action=action)
    figure(
        f"{what} of a save's {found['calls']} file-system calls: {found['torn']} torn, "
        f"{found['lost']} lost, {found['unswept']} unswept, {found['untold']} errors without "
        f"the path, {found['wrong_error']} of another type"
    )
    assert found["calls"] > 50
    assert {**found, "calls": 0} == dict.fromkeys(found, 0)
