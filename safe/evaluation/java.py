"""How we start the Java programs that pycocoevalcap ships (PTB tokenizer, METEOR).

pycocoevalcap's own wrappers write temp files into site-packages, inherit the locale (a decimal
comma breaks METEOR's numbers) and wait forever. The jars are the same; only the start differs.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# One encoding and one decimal point, whatever the machine's locale says.
JAVA = ("java", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
_START_SECONDS = 60.0


def answer(command: Sequence[str], given: bytes, seconds: float) -> bytes:
    """What a program writes to standard output, given all of its input.

    Raises:
        OSError: it does not start.
        subprocess.SubprocessError: it fails, or takes longer; nothing of it lives on.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, not for the program
    )  # fmt: skip
    try:
        out, err = process.communicate(given, timeout=seconds)
    finally:
        end(process)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), out, err)
    return out


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program of a session of its own, and what it has started: `java` may be a script."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and let go of its pipes."""
    kill(process)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with suppress(OSError):  # unsent text for a program that is gone
            if pipe is not None:
                pipe.close()


@functools.cache
def java_available() -> bool:
    """Whether `java -version` really runs; a stub that fails counts as absent. Asked once."""
    try:
        answer(["java", "-version"], b"", _START_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def jar(module: str, name: str) -> Path:
    """Path of the jar `name` that lies beside the installed Python module `module`."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is a requirement of safe-probe"
    return Path(str(spec.origin)).with_name(name)
