"""Known bugs, put back one at a time: the trials notice each of them, and nothing without them."""

from pathlib import Path
from typing import Any

import pytest

# the bug, the trial that must notice it, its options, and the figures that are 0 in good health
BUGS = (
    ("in_place_save", "saves:kill", {"rounds": 25}, ("torn", "lost")),
    ("remove_then_rename", "saves:at_every_call", {"action": "kill"}, ("torn", "lost")),
    ("temp_never_swept", "saves:kill", {"rounds": 25}, ("unswept",)),
    ("stale_lock", "owners:fight", {"rounds": 1}, ("not_recovered", "no_winner")),
    ("generators_not_restored", "training:dropout", {}, ("differ",)),
    ("nan_is_a_number", "numbers:sites", {"config": None}, ("moved",)),
    ("hooks_stay", "leaks:probes", {"rounds": 5}, ("hooks",)),
    ("raw_pickle", "inputs:pickles", {}, ("touched",)),
    ("line_ends_in_captions", "inputs:captions", {}, ("shifted",)),
    ("truncated_audio", "inputs:truncated", {}, ("accepted",)),
    ("paths_outside", "inputs:traversal", {}, ("outside",)),
)
NO_FOLDER = ("numbers:sites", "leaks:probes", "inputs:captions")


@pytest.mark.parametrize(("bug", "name", "options", "figures"), BUGS, ids=[b[0] for b in BUGS])
def test_known_bug_is_noticed(
    bug: str, name: str, options: dict[str, Any], figures: tuple[str, ...],
    trial: Any, tiny_run: Any, repo_root: Path, figure: Any, tmp_path: Path,
) -> None:  # fmt: skip
    options = dict(options)
    if "config" in options:
        options["config"] = tiny_run.config.to_dict()
    if name == "leaks:probes":
        options["toy"] = repo_root / "tests" / "probes" / "conftest.py"
    if name not in NO_FOLDER:
        options["folder"] = tmp_path
    found = trial(name, patch=bug, **options)
    noticed = {key: found[key] for key in figures if found[key]}
    figure(f"known bug {bug.replace('_', ' ')}: {name} says {noticed or 'nothing'}")
    assert noticed


@pytest.mark.parametrize("name", ["captions", "truncated", "traversal", "pickles"])
def test_no_bug_no_alarm(name: str, trial: Any, tmp_path: Path) -> None:
    options = {} if name == "captions" else {"folder": tmp_path}
    assert set(trial(f"inputs:{name}", **options).values()) == {0}
