"""Writing that survives a power cut: flush to the disk, then appear at once."""

import os
from pathlib import Path

from safe.training.locks import another_alive

TEMP = ".tmp-"
"""What the name of everything begins with that is not finished."""


def temp_beside(path: Path) -> Path:
    """Where this process writes what will be renamed to `path`."""
    return path.with_name(f"{TEMP}{path.name}-{os.getpid()}")


def fsync_path(path: Path) -> None:
    """Ask the disk to keep a file's bytes, or a folder's list of names.

    Raises:
        OSError: the disk could not; nothing about the path can be relied on then.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Ask the disk to keep every file and folder below `folder`, and itself, innermost first."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            fsync_path(Path(root, name))
        fsync_path(Path(root))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` (text as UTF-8); a reader sees the old or the new, never a part.

    Raises:
        OSError: the disk is full, read-only or gone; the old file is untouched.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temp = temp_beside(path)
    try:
        with temp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def sweep_files(folder: Path) -> None:
    """Remove what `write_atomically` left in a folder when its process was killed."""
    for temp in folder.glob(f"{TEMP}*"):
        writer = temp.name.rpartition("-")[2]
        if writer.isdecimal() and temp.is_file() and not another_alive(int(writer)):
            temp.unlink(missing_ok=True)


def point_symlink(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, replacing an older link in one step.

    Raises:
        OSError: `link` is a real folder, or its folder cannot be written.
    """
    temp = temp_beside(link)
    temp.unlink(missing_ok=True)
    try:
        temp.symlink_to(target)
        os.replace(temp, link)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    fsync_path(link.parent)
