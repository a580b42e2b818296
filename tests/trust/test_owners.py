"""One run folder has one owner, a dead one does not hold it; one cache has many who fill it."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.sizes(3, 200)
def test_two_runs_in_one_folder(size: int, trial: Any, figure: Any, tmp_path: Path) -> None:
    found = trial("owners:fight", folder=tmp_path, rounds=size)
    figure(
        "two runs in one folder, {rounds} times: {two_owners} times both had it, {unnamed} times "
        "the owner was not named, {not_recovered} dead owners held it, {no_winner} times neither "
        "had it".format(**found)
    )
    assert found == {**dict.fromkeys(found, 0), "rounds": size}


@pytest.mark.sizes(4, 100)
def test_processes_that_fill_one_cache(size: int, trial: Any, figure: Any, tmp_path: Path) -> None:
    found = trial("caches:fill", folder=tmp_path, rounds=size)
    figure(
        "{processes} processes filling one cache with {clips} clips, {rounds} times, {killed} "
        "times one killed -9: {twice} sounds encoded twice, {absent} absent, {torn} caches torn, "
        "{failed} processes failed".format(**found)
    )
    assert [found[key] for key in ("twice", "absent", "torn", "failed")] == [0, 0, 0, 0]
    assert found["killed"] >= size // 4
