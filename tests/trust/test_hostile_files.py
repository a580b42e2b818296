"""A stranger's .pt file: nothing in it is run, and it ends in an error that names it."""

import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from trials.foreign import files

from configs.errors import ModelError
from safe.models.audio_encoders.checkpoint import open_checkpoint

HARMLESS = ("deep.zip",)
"""Tuples within tuples: plain values, which no reader of ours takes for weights."""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_foreign_checkpoints(figure: Any, tmp_path: Path) -> None:
    canary, count, slowest = tmp_path / "canary", 0, 0.0
    path, link = tmp_path / "stranger.pt", tmp_path / "link.pt"
    link.symlink_to(path)
    before = set(os.listdir(tmp_path)) | {path.name}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong: list[str] = []
    for name, content in files(canary):
        path.write_bytes(content)
        start = time.process_time()
        try:
            open_checkpoint(link if count % 2 else path)
            if name not in HARMLESS:
                wrong.append(f"{name}: opened")
        except ModelError as error:
            if ".pt: " not in str(error):
                wrong.append(f"{name}: {error}")
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
        slowest = max(slowest, time.process_time() - start)
        count += 1
        assert not canary.exists() and set(os.listdir(tmp_path)) == before, name
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    figure(
        f"strangers' .pt files: {count} opened carefully, the canary touched 0 times, {len(wrong)} "
        f"without a clear error, {slowest:.1f} s at most, {grown:.0f} MB more memory"
    )
    assert wrong == []
    assert count > 60 and slowest < 2 and grown < 100


@pytest.mark.parametrize("target", ["/dev/zero", "/", "missing"])
def test_links_to_what_is_no_file(target: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").symlink_to(target)
    with pytest.raises(ModelError, match=r"a\.pt"):
        open_checkpoint(tmp_path / "a.pt")
