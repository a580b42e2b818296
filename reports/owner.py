"""Which process holds a run's folder, as ``run.lock`` says; looking changes nothing."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from configs.errors import FileError
from configs.json_files import open_regular, parse_json
from reports.errors import ReportError

_MOST_BYTES = 4096


@dataclass(frozen=True)
class Owner:
    """The process that trains, or was training when it died."""

    pid: int
    host: str

    @property
    def lives(self) -> bool | None:
        """Whether the process is there; None when it is one of another machine."""
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)  # asks only; no signal is sent
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # it is there, and belongs to somebody else
            pass
        return True


def read_owner(folder: Path) -> Owner | None:
    """The owner of a run's folder; None when nobody holds it.

    Raises:
        ReportError: there is an owner, but ``run.lock`` does not tell who.
    """
    try:
        with open_regular(folder / "run.lock") as file:
            text = file.read(_MOST_BYTES)
        if not text.strip():  # left empty when it is released
            return None
        owner = parse_json(text)
        pid = int(owner["pid"])
        if not 0 < pid < 2**31:
            raise ValueError(f"pid {owner['pid']}")
        return Owner(pid, str(owner["host"]))
    except FileNotFoundError:
        return None
    except FileError as error:
        raise ReportError(str(error)) from None
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ReportError(f"{folder / 'run.lock'} cannot be read: {error}") from None
