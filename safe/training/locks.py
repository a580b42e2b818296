"""Locks that the kernel drops when their owner dies, however it dies.

A lock file that only names a process cannot tell a dead owner from a new process with the same
number (inside a container the trainer is often number 7 every time). flock can: it ends with the
process.
"""

import errno
import fcntl
import os
import weakref
from pathlib import Path

_HELD: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


class FileLock:
    """An exclusive flock on a file or a folder, held until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        _HELD.add(self)

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def try_lock(path: Path) -> FileLock | None:
    """Lock `path`, a folder or a file (made when absent), or return None when somebody holds it.

    Raises:
        OSError: the path cannot be opened, or its file system knows no locks.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return None
        raise
    return FileLock(descriptor)


def another_alive(pid: int) -> bool:
    """Return whether another process than this one runs under this number on this machine.

    Our own number on something left behind is that of a dead process: inside a container the
    trainer is often number 7 every time.
    """
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # somebody else's process, or no number at all: do not call it dead
    return True


def _drop_in_child() -> None:
    """Close a forked child's copies: a data worker must not outlive the trainer's lock."""
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)
