"""What a training costs is written as it goes, and goes on counting when it is resumed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from safe.training import resources
from safe.training.resources import Resources, peak_memory


def a_step(seconds: float) -> Any:
    return SimpleNamespace(seconds=seconds)


def begun(folder: Path) -> Resources:
    callback = Resources()
    callback.on_run_begin(folder, cast(Any, None))
    return callback


def written(folder: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((folder / "resources.json").read_text()))


def test_seconds_add_up_over_sittings(tmp_path: Path) -> None:
    first = begun(tmp_path)
    for seconds in (1.5, 2.0):
        first.on_step_end(cast(Any, None), a_step(seconds))
    first.on_evaluation(cast(Any, None), 1.0, cast(Any, None), {})
    assert written(tmp_path)["train_seconds"] == 3.5
    second = begun(tmp_path)
    second.on_step_end(cast(Any, None), a_step(0.25))
    second.on_train_end(cast(Any, None))
    assert written(tmp_path)["train_seconds"] == 3.75


def test_file_is_written_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = begun(tmp_path)
    callback.on_step_end(cast(Any, None), a_step(1.0))
    assert not (tmp_path / "resources.json").exists()
    now = resources.time.monotonic()
    monkeypatch.setattr(resources.time, "monotonic", lambda: now + 61)
    callback.on_step_end(cast(Any, None), a_step(1.0))
    assert written(tmp_path)["train_seconds"] == 2.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"train_seconds": "long"}', "{}"])
def test_damaged_file_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "resources.json").write_text(text)
    callback = begun(tmp_path)
    callback.on_step_end(cast(Any, None), a_step(1.0))
    callback.on_train_end(cast(Any, None))
    assert written(tmp_path)["train_seconds"] == 1.0


def test_peak_is_that_of_the_process_without_a_gpu() -> None:
    where, before = peak_memory()
    if where == "gpu":
        pytest.skip("a GPU is in use here")
    held = torch.zeros(64 << 20, dtype=torch.uint8) + 1
    assert peak_memory()[1] >= before and before > 50e6 and held[-1] == 1
