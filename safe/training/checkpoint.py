"""Checkpoints that are either complete or not there.

A checkpoint is a folder. It is written under a temporary name, flushed to the disk, and published
by one rename; a process killed at any moment leaves the older checkpoints and at most a temporary
folder that the next save sweeps away. In-place saves are torn, and remove-then-rename loses the
last good one; neither happens here.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import CheckpointError
from safe.checkpoint_manifest import Manifest, verify, write_manifest
from safe.training.durable import TEMP, fsync_path, fsync_tree, temp_beside
from safe.training.locks import FileLock, another_alive, try_lock

__all__ = [
    "KEEP",
    "Manifest",
    "Rejected",
    "checkpoints",
    "free_bytes",
    "latest_good",
    "newest",
    "publish",
    "set_aside",
    "step_name",
    "step_of",
    "sweep",
    "verify",
]

KEEP = 2
"""How many good checkpoints a run keeps."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_STEP = re.compile(r"step-(\d{8,})")
_log = logging.getLogger(__name__)


class Rejected(NamedTuple):
    """A checkpoint that did not verify."""

    path: Path
    reason: str


def step_name(step: int) -> str:
    """Return the folder name for an optimizer step, such as step-00000123."""
    if step < 0:
        raise CheckpointError(f"step is {step}; a checkpoint's step is 0 or more")
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step in a name made by `step_name`, or None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def checkpoints(parent: Path) -> list[Path]:
    """Return the published step-... folders in `parent`, oldest step first, unchecked."""
    if not parent.is_dir():
        return []
    found = {
        step: path
        for path in parent.iterdir()
        if (step := step_of(path.name)) is not None and not path.is_symlink()
    }
    return [found[step] for step in sorted(found)]


def newest(parent: Path) -> Path | None:
    """Return the checkpoint with the highest step, unchecked; None when there is none."""
    return next(reversed(checkpoints(parent)), None)


def latest_good(parent: Path, before: Path | None = None) -> tuple[Path | None, list[Rejected]]:
    """Return the newest checkpoint that verifies, and the newer ones that do not, with reasons.

    Nothing is moved or changed; `set_aside` does that for a rejected one.

    Args:
        parent: folder of checkpoints.
        before: one of them; only older ones are looked at.
    """
    rejected: list[Rejected] = []
    found = checkpoints(parent)
    for path in reversed(found if before is None else found[: found.index(before)]):
        try:
            manifest = verify(path)
            if manifest.name != path.name:
                raise CheckpointError(
                    f"checkpoint {path}: its manifest says it is "
                    f"{manifest.name}; the folder was renamed"
                )
        except CheckpointError as error:
            rejected.append(Rejected(path, str(error)))
        else:
            return path, rejected
    return None, rejected


def publish(
    parent: Path,
    name: str,
    write: Callable[[Path], None],
    *,
    keep: int = KEEP,
    metadata: dict[str, Any],
    needed_bytes: int | None = None,
) -> Path:
    """Save a checkpoint as `parent/name` so that it is either complete or not there.

    Sweeps what dead writers left, checks the free space, lets `write` fill an empty folder, adds
    the manifest, flushes everything to the disk and renames once. Then step-... folders beyond the
    `keep` newest good ones go (only when `name` is a step itself).

    The same content under a name that exists is no error and changes nothing, so neither files
    nor metadata should hold clock times. A damaged checkpoint under that name is set aside.

    Args:
        parent: folder of checkpoints; made when only the last part of the path is absent.
        name: usually `step_name(step)`.
        write: fills the folder that it is given with regular files.
        keep: how many good step-... checkpoints remain, this one included.
        metadata: JSON values kept in the manifest.
        needed_bytes: space to ask for before writing; the newest checkpoint's size by default.

    Raises:
        CheckpointError: disk full, read-only or gone (with needed and free bytes; older
            checkpoints are untouched), or other good content already has this name.
    """
    if not _NAME.fullmatch(name):
        raise CheckpointError(
            f"checkpoint name {name!r}: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    if keep < 1:
        raise CheckpointError(f"keep is {keep}; at least 1 checkpoint must remain")
    target, temp = parent / name, temp_beside(parent / name)
    try:
        needed = _make_room(parent, target, needed_bytes)
        temp.mkdir()
    except OSError as error:
        raise _cannot_save(target, str(error), needed_bytes or 0) from error
    try:
        _write_and_rename(temp, target, write, metadata)
    except Exception as error:
        problem = _disk_problem(error)
        if problem is None:
            raise
        needed = max(needed, _size_of(temp))
        shutil.rmtree(temp, ignore_errors=True)
        raise _cannot_save(target, problem, needed) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    if step_of(name) is not None:
        _prune(parent, target, keep)
    return target


def sweep(parent: Path) -> list[Path]:
    """Delete the temporary folders of writers that no longer live; return their paths."""
    swept = []
    for path in parent.glob(f"{TEMP}*"):
        if path.is_dir() and not path.is_symlink() and _abandoned(path):
            shutil.rmtree(path)
            swept.append(path)
    return swept


def set_aside(folder: Path, why: str = "corrupt") -> Path:
    """Rename a checkpoint to NAME.WHY (with -2, -3, ... when taken) and return the new path.

    It no longer counts as a checkpoint and is never deleted by us. Use it for a damaged one, and
    with "superseded" for newer ones when a run goes on from an older one.
    """
    aside, count = folder.with_name(f"{folder.name}.{why}"), 1
    while os.path.lexists(aside):
        count += 1
        aside = folder.with_name(f"{folder.name}.{why}-{count}")
    os.rename(folder, aside)
    fsync_path(folder.parent)
    return aside


def _make_room(parent: Path, target: Path, needed_bytes: int | None) -> int:
    """Sweep, and refuse before writing when the space will not do; return the bytes asked for."""
    parent.mkdir(exist_ok=True)
    sweep(parent)
    needed = _size_of(newest(parent)) if needed_bytes is None else needed_bytes
    if free_bytes(parent) < needed:
        raise _cannot_save(target, os.strerror(errno.ENOSPC), needed)
    return needed


def _write_and_rename(
    temp: Path, target: Path, write: Callable[[Path], None], metadata: dict[str, Any]
) -> None:
    lock = _lock_if_supported(temp)
    try:
        write(temp)
        manifest = write_manifest(temp, target.name, metadata)
        fsync_tree(temp)
        if not _already_there(target, manifest):
            os.rename(temp, target)
            fsync_path(target.parent)
    finally:
        if lock is not None:
            lock.release()


def _already_there(target: Path, manifest: Manifest) -> bool:
    if not os.path.lexists(target):
        return False
    try:
        existing = verify(target)
    except CheckpointError as error:
        _log.warning("%s; kept as %s", error, set_aside(target).name)
        return False
    if existing != manifest:
        raise CheckpointError(
            f"checkpoint {target} exists already with other content and is left "
            "as it is; continue its run with --resume, or use another --output"
        )
    return True


def _prune(parent: Path, published: Path, keep: int) -> None:
    """Delete what lies beyond the `keep` newest good ones; a failure here loses nothing."""
    good = 1  # the one just published, wherever its step stands among the others
    try:
        found = checkpoints(parent)
    except OSError as error:
        _log.warning("cannot look for old checkpoints in %s: %s", parent, error)
        return
    for path in reversed(found):
        if path == published:
            continue
        if good < keep:
            good += _is_good(path)
            continue
        try:  # renamed first, so that a kill halfway leaves no damaged checkpoint
            aside = temp_beside(path.with_name(f"old-{path.name}"))
            os.rename(path, aside)
            shutil.rmtree(aside)
        except OSError as error:
            _log.warning("cannot delete the old checkpoint %s: %s", path, error)


def _is_good(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError as error:
        _log.warning("%s", error)
        return False
    return True


def _lock_if_supported(folder: Path) -> FileLock | None:
    try:
        return try_lock(folder)
    except OSError:
        return None  # no locks on this file system: `_abandoned` asks for the process instead


def _abandoned(temp: Path) -> bool:
    """Return whether nobody writes here: its lock is free or, without locks, its process gone."""
    try:
        lock = try_lock(temp)
    except OSError:
        pid = temp.name.rpartition("-")[2]
        return pid.isdigit() and not another_alive(int(pid))
    if lock is None:
        return False
    lock.release()
    return True


def _size_of(folder: Path | None) -> int:
    if folder is None:
        return 0
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that `folder` is, or would be, on."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _disk_problem(error: Exception) -> str | None:
    """Say what the system refused; safetensors reports it in its text, not as an OSError."""
    if isinstance(error, OSError):
        return str(error)
    match = re.search(r"\(os error (\d+)\)", str(error))
    return f"{os.strerror(int(match[1]))} ({error})" if match else None


def _cannot_save(target: Path, problem: str, needed: int) -> CheckpointError:
    return CheckpointError(
        f"cannot save checkpoint {target}: {problem}; needed at least {needed:,} bytes, "
        f"{free_bytes(target.parent):,} bytes are free there; older checkpoints are untouched; "
        "make room or choose another --output, then --resume"
    )
