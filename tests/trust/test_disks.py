"""Disks that are full, read-only or gone: the older checkpoint is good, and the message says so."""

import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from trials.saves import PART_BYTES, PARTS, save, whole
from trials.training import results

from configs.errors import CheckpointError
from configs.overrides import dotted_fields
from safe.training import preflight
from safe.training import run as runs
from safe.training.checkpoint import latest_good, publish, step_name
from safe.training.launch import Launch

BYTES = PARTS * PART_BYTES


def mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for about three checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not mount(folder, f"size={3 * BYTES}"):
        pytest.skip("only root may mount a small disk, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def good(parent: Path, step: int) -> bool:
    path, rejected = latest_good(parent)
    return path == parent / step_name(step) and whole(path) and not rejected


@pytest.mark.sizes(21, 201)
def test_disk_that_fills_up_during_a_save(size: int, figure: Any, small_disk: Path) -> None:
    parent, ballast = small_disk / "checkpoints", small_disk / "ballast"
    refused = told = saved = 0
    for part in range(size):
        shutil.rmtree(parent, ignore_errors=True)
        ballast.unlink(missing_ok=True)
        save(parent, 1)
        free = BYTES * 1.1 * part / (size - 1)
        ballast.write_bytes(bytes(max(0, int(shutil.disk_usage(small_disk).free - free))))
        options = {"needed_bytes": 0} if part % 2 else {}  # 0: do not look before writing
        try:
            save(parent, 2, **options)
        except CheckpointError as error:
            refused += 1
            assert good(parent, 1), part
            pattern = r"step-00000002: .*No space left.*at least [\d,]+ bytes, [\d,]+ bytes are"
            told += bool(re.search(pattern, str(error))) and str(parent) in str(error)
        else:
            saved += 1
            assert good(parent, 2), part
        assert not [path for path in parent.iterdir() if path.name.startswith(".")]
    figure(f"disk full at 0-100% of a save: {refused} refused with the older one good, "
           f"{saved} saved, of {size}")  # fmt: skip
    assert told == refused > size // 2 and saved > 0


def test_read_only_disk(small_disk: Path) -> None:
    parent = small_disk / "checkpoints"
    save(parent, 1)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    with pytest.raises(CheckpointError, match=f"{parent}/step-00000002: .*Read-only file system"):
        save(parent, 2)
    assert good(parent, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_folder_without_permission(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 1)
    (tmp_path / "checkpoints").chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match="step-00000002: .*Permission denied"):
            save(tmp_path / "checkpoints", 2)
        assert good(tmp_path / "checkpoints", 1)
    finally:
        (tmp_path / "checkpoints").chmod(0o755)


def test_folder_that_vanishes_during_a_save(tmp_path: Path) -> None:
    parent = tmp_path / "run" / "checkpoints"
    parent.parent.mkdir()

    def write(folder: Path) -> None:
        shutil.rmtree(tmp_path / "run")
        (folder / "part").write_bytes(b"late")

    with pytest.raises(CheckpointError, match=f"{parent}/step-00000002: .*No such file"):
        publish(parent, step_name(2), write, metadata={})
    assert not parent.parent.exists()


def test_too_little_room_is_found_before_training(
    tiny_run: Any,
    in_small_world: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Any,
) -> None:
    launch = Launch(console=Console(file=io.StringIO()), output=tmp_path, name="a", device="cpu")
    parts = (tiny_run.folder / "checkpoints" / step_name(6)).rglob("*.safetensors")
    real = sum(part.stat().st_size for part in parts)
    monkeypatch.setattr(preflight, "free_bytes", lambda _: real)
    with pytest.raises(CheckpointError, match="a/checkpoints: .* bytes are free") as caught:
        runs.start(tiny_run.config, dotted_fields(), launch)
    assert not (tmp_path / "a" / "metrics.jsonl").read_bytes()
    needed = int(re.search(r"at least ([\d,]+) bytes", str(caught.value))[1].replace(",", ""))
    figure(f"room that is asked for before training: {needed / 3 / real:.3f} of a real checkpoint")
    assert 0.9 < needed / 3 / real <= 1


@pytest.mark.slow
def test_disk_that_is_full_in_the_middle_of_a_training(
    tiny_run: Any, in_small_world: None, figure: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    saved = tiny_run.folder / "checkpoints"
    one = sum(f.stat().st_size for f in saved.glob("step-00000003/**/*") if f.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not mount(disk, f"size={int(1.6 * one)}"):
        pytest.skip("only root may mount a small disk, and not in every container")
    try:
        launch = Launch(console=Console(file=io.StringIO()), output=disk, name="run", device="cpu")
        with monkeypatch.context() as patch:
            patch.setattr(runs, "check_room", lambda *_: None)  # room that others take meanwhile
            with pytest.raises(CheckpointError, match=r"step-00000006: .*No space left"):
                runs.start(tiny_run.config, dotted_fields(), launch)
        path, rejected = latest_good(disk / "run" / "checkpoints")
        assert path is not None and path.name == step_name(3) and not rejected
        subprocess.run(["mount", "-o", f"remount,size={5 * one}", str(disk)], check=True)
        runs.resume(disk / "run", launch)
        assert results(disk / "run") == results(tiny_run.folder)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    figure("disk full at the second save of a training: refused by its path, the first one good; "
           "with room again it ended with the bytes of an undisturbed one")  # fmt: skip
