"""One live run per folder: run.lock names the owner, and the kernel knows whether it lives."""

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from configs.errors import CheckpointError
from configs.json_files import read_json
from safe.training.locks import FileLock, another_alive, try_lock

LOCK_NAME = "run.lock"


class RunLock:
    """Holds a run folder until `release`; a dead owner's lock is simply taken over.

    Raises:
        CheckpointError: a living run owns the folder (pid and host are named).
        OSError: the folder cannot be written, or its lock is a link.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._lock: FileLock | None = None
        try:
            self._lock = try_lock(self._path)
            refused = self._lock is None
        except OSError as error:
            if error.errno == errno.ELOOP or not os.access(folder, os.W_OK | os.X_OK):
                raise
            refused = self._named_owner_lives()  # no locks on this file system
        if refused:
            pid, host = _read_owner(self._path)
            raise CheckpointError(
                f"run folder {folder} is in use by process {pid} on {host}; wait "
                "for it or stop it, or start this run under another name"
            )
        self._held = True
        try:
            self._path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the folder up; a second call does nothing."""
        if self._held:
            self._held = False
            with suppress(OSError):  # the folder may be gone; the lock itself is the kernel's
                self._path.write_text("")  # not removed: two runs could lock an old and a new file
            if self._lock is not None:
                self._lock.release()

    def _named_owner_lives(self) -> bool:
        pid, host = _read_owner(self._path)
        if not isinstance(pid, int):
            return False
        return host != socket.gethostname() or another_alive(pid)


def _read_owner(path: Path) -> tuple[int | str, str]:
    try:
        owner = read_json(path)
        return int(owner["pid"]), str(owner["host"])
    except (OSError, ValueError, TypeError, KeyError):
        return "(unknown)", "(unknown)"
