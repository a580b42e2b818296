"""Known bugs, put back one at a time: the trials notice each of them, and nothing without them."""

from pathlib import Path
from typing import Any

import pytest

# the bug, the trial that must notice it, its options, and the figures that are 0 in good health
BUGS = (
    ("in_place_save", "saves:kill", {"rounds": 25}, ("torn", "lost")),
    ("remove_then_rename", "saves:at_every_call", {"action": "kill"}, ("torn", "lost")),
    ("no_sampler_state", "training:order", {"config": None}, ("differ",)),
    ("generators_not_restored", "training:dropout", {}, ("differ",)),
    ("nan_is_a_number", "numbers:sites", {"config": None}, ("moved",)),
    ("unescaped_field", "inputs:pages", {"source": None}, ("scripts",)),
    ("raw_pickle", "inputs:pickles", {}, ("touched",)),
    ("hooks_stay", "leaks:probes", {"rounds": 5, "toy": None}, ("hooks",)),
    ("line_ends_in_captions", "inputs:captions", {}, ("shifted",)),
    ("stale_lock", "owners:fight", {"rounds": 1}, ("not_recovered", "no_winner")),
    ("truncated_audio", "inputs:truncated", {}, ("accepted",)),
    ("paths_outside", "inputs:traversal", {}, ("outside",)),
)
NO_FOLDER = ("numbers:sites", "leaks:probes", "inputs:captions", "training:order")
_noticed: dict[str, bool] = {}


@pytest.fixture
def options(tiny_run: Any, repo_root: Path, tmp_path: Path) -> Any:
    """options(name of a trial, given): the given ones, filled in."""
    known = {
        "config": tiny_run.config.to_dict(), "source": tiny_run.folder,
        "toy": repo_root / "tests" / "probes" / "conftest.py",
    }  # fmt: skip

    def fill(name: str, given: dict[str, Any]) -> dict[str, Any]:
        folder = {} if name in NO_FOLDER else {"folder": tmp_path}
        return {k: known.get(k, value) for k, value in given.items()} | folder

    return fill


@pytest.mark.parametrize(("bug", "name", "given", "figures"), BUGS, ids=[b[0] for b in BUGS])
def test_known_bug_is_noticed(
    bug: str, name: str, given: dict[str, Any], figures: tuple[str, ...], trial: Any, options: Any,
) -> None:  # fmt: skip
    found = trial(name, patch=bug, **options(name, given))
    _noticed[bug] = any(found[key] for key in figures)
    assert _noticed[bug], f"{name} says {found}"


def test_how_many_were_noticed(figure: Any) -> None:
    missed = [bug for bug, noticed in _noticed.items() if not noticed]
    figure(f"known bugs put back: {len(_noticed) - len(missed)} of {len(_noticed)} noticed")
    assert missed == []


def test_temporary_folders_that_stay_are_noticed(trial: Any, tmp_path: Path) -> None:
    assert trial("saves:kill", patch="temp_never_swept", folder=tmp_path, rounds=25)["unswept"]


@pytest.mark.parametrize(
    ("name", "given"),
    [("inputs:captions", {}), ("inputs:truncated", {}), ("inputs:traversal", {}),
     ("inputs:pickles", {}), ("inputs:pages", {"source": None}),
     ("training:order", {"config": None})],
)  # fmt: skip
def test_no_bug_no_alarm(name: str, given: dict[str, Any], trial: Any, options: Any) -> None:
    found = trial(name, **options(name, given))
    found.pop("steps", None)
    assert set(found.values()) == {0}
