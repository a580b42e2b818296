"""Known bugs, put back one at a time: trials and suite notice each, and nothing without them."""

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
# the bug, and a test outside this folder's trials that must fail with it
SUITE = {
    "in_place_save":
        ("training/test_checkpoint", "test_a_failing_writer_leaves_nothing_and_its_own_error"),
    "remove_then_rename":
        ("training/test_checkpoint", "test_two_newest_good_ones_are_kept"),
    "no_sampler_state":
        ("training/test_stage_a", "test_state_round_trip_goes_on_at_the_same_window"),
    "generators_not_restored":
        ("training/test_state", "test_all_generators_return_and_saving_moves_none"),
    "nan_is_a_number":
        ("training/test_stage_a", "test_gradient_that_is_not_finite_moves_nothing_and_is_counted"),
    "unescaped_field":
        ("reports/test_html", "test_hostile_text_stays_text"),
    "raw_pickle":
        ("trust/test_hostile_files", "test_nothing_is_run_where_it_is_opened"),
    "hooks_stay":
        ("probes/test_session", "test_everything_is_as_found"),
    "line_ends_in_captions":
        ("evaluation/test_text", "test_clean_caption_is_one_line_and_stable"),
    "stale_lock":
        ("training/test_run_directory", "test_a_lock_left_by_a_reused_process_number_is_recovered"),
    "truncated_audio":
        ("data/test_audio", "test_a_file_that_is_cut_short"),
    "paths_outside":
        ("data/test_sources", "test_a_name_that_leads_outside_is_refused"),
}  # fmt: skip
NO_FOLDER = ("numbers:sites", "leaks:probes", "inputs:captions", "training:order")
_noticed: dict[str, bool] = {}
_failed: dict[str, bool] = {}


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


@pytest.mark.slow
@pytest.mark.parametrize("bug", SUITE)
def test_suite_notices_a_known_bug(bug: str, trial: Any, repo_root: Path, tmp_path: Path) -> None:
    file, name = SUITE[bug]
    test = f"tests/{file}.py::{name}"
    found = trial("suite:run", patch=bug, root=repo_root, test=test, folder=tmp_path)
    _failed[bug] = found["failed"]
    assert _failed[bug], f"{test} says {found}"


@pytest.mark.parametrize(
    ("what", "noticed"),
    [("the trials", _noticed),
     pytest.param("the suite's other tests", _failed, marks=pytest.mark.slow)],
)  # fmt: skip
def test_how_many_were_noticed(what: str, noticed: dict[str, bool], figure: Any) -> None:
    figure(f"known bugs put back: {sum(noticed.values())} of {len(BUGS)} noticed by {what}")
    assert sum(noticed.values()) == len(BUGS) == len(SUITE) == 12


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
