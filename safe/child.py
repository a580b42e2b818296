"""A process of ours that works on strangers' bytes within limits, and is replaced when it dies."""

import json
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from configs.errors import SafeError

Answer = tuple[dict[str, Any], Any]
"""Plain values, and bytes (or another buffer) beside them."""

_SIZES = struct.Struct("<QQ")
_START_SECONDS = 300.0  # importing torch from a busy network disk
_BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PIPE_BYTES = 1 << 20
_SET_PIPE_SIZE = 1031  # fcntl's F_SETPIPE_SZ, which only Linux has


class ChildFailed(Exception):
    """The child crashed or broke a limit on one question; the message says which."""

    def __init__(self, reason: str, *, limit: bool) -> None:
        super().__init__(reason)
        self.limit = limit
        """Whether it was a limit, and not a crash."""


class Child:
    """Runs ``module`` in a process of its own and asks it one question at a time.

    The module calls `serve`. Its process starts with the first question, and anew after it has
    died. It holds none of our files, cannot be interrupted by signals to the process group (what it
    does is never half done), ends when we do, and writes no file larger than a question allows.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(
        self, question: dict[str, Any], *, seconds: float, memory: int, file_bytes: int = 0
    ) -> tuple[dict[str, Any], bytearray]:
        """Return what the module answers.

        Args:
            question: plain values.
            seconds: how long it may take, and how much processor time it may use.
            memory: bytes that it may take beyond what the idle process has (where there is /proc).
            file_bytes: size of the largest file that it may write.

        Raises:
            ChildFailed: it crashed or broke a limit; the next question goes to a new process.
            SafeError: it does not start.
        """
        if self._process is None or self._owner != os.getpid():  # a fork must not share pipes
            self._start()
        limits = {"seconds": seconds, "memory": memory, "file_bytes": file_bytes}
        try:
            self._send({"question": question, **limits})
            answer, data = self._receive(seconds)
        except TimeoutError:
            self._kill()
            raise ChildFailed(f"it took longer than {seconds:.0f} s", limit=True) from None
        except (EOFError, BrokenPipeError):
            reason, limit = _cause_of_death(self._kill(), seconds)
            raise ChildFailed(reason, limit=limit) from None
        except BaseException:
            self._kill()  # an answer that nobody waits for would be taken for the next one's
            raise
        if answer.get("out of memory"):
            self._kill()
            megabytes = memory / 2**20
            raise ChildFailed(f"it asks for more than {megabytes:,.0f} MB of memory", limit=True)
        return answer, data

    def close(self) -> None:
        """Let the process end; a later question starts another."""
        if self._process is not None and self._owner == os.getpid():
            self._kill()

    def _start(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        # Blocked signals stay blocked in the child: a Ctrl-C must not cost the clip at hand.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._owner = os.getpid()
        try:
            self._receive(_START_SECONDS)
        except (TimeoutError, EOFError):
            code = self._kill()
            raise SafeError(
                f"the process for {self.module} does not start (exit code {code}); what it said is "
                "above"
            ) from None
        except BaseException:
            self._kill()
            raise

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        _write(self._process.stdin.fileno(), message, b"")

    def _receive(self, seconds: float) -> tuple[dict[str, Any], bytearray]:
        assert self._process is not None and self._process.stdout is not None
        return _read(self._process.stdout.fileno(), time.monotonic() + seconds)

    def _kill(self) -> int:
        """End the process, if it has not ended; its exit code."""
        process, self._process = self._process, None
        assert process is not None and process.stdin and process.stdout
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        try:  # it may just be dying of something that is worth telling
            return process.wait(0.05)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def serve(answer: Callable[[dict[str, Any]], Answer]) -> None:
    """In the child: answer questions until there are no more.

    What is printed goes nowhere. MemoryError is told as such, any other exception ends the child.
    """
    import fcntl

    questions, answers = os.dup(0), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    with suppress(OSError):
        fcntl.fcntl(answers, _SET_PIPE_SIZE, _PIPE_BYTES)
    idle = _memory_mapped()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(answers, {}, b"")
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    while True:
        try:
            asked, _ = _read(questions)
        except EOFError:
            return
        _limit(asked, idle)
        try:
            values, data = answer(asked["question"])
        except MemoryError:
            values, data = {"out of memory": True}, b""
        _write(answers, values, data)


def _limit(asked: dict[str, Any], idle: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + asked["seconds"]) + 1
    wanted = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: asked["file_bytes"]}
    if idle:
        wanted[resource.RLIMIT_AS] = idle + asked["memory"]
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (soft, hard))


def _memory_mapped() -> int:
    """Return this process's address space in bytes; 0 where that cannot be known."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cause_of_death(code: int, seconds: float) -> tuple[str, bool]:
    """Return in words why the child ended, and whether it was a limit."""
    if code == -signal.SIGXCPU:
        return f"it took more than {seconds:.0f} s of processor time", True
    if code == -signal.SIGKILL:
        return "its process was killed, perhaps for lack of memory", True
    if code < 0:
        return f"it crashed the process that read it ({signal.Signals(-code).name})", False
    return f"it ended the process that read it (exit code {code})", False


def _write(descriptor: int, values: dict[str, Any], data: Any) -> None:
    text, view = json.dumps(values).encode("ascii"), memoryview(data).cast("B")
    for part in (memoryview(_SIZES.pack(len(text), len(view)) + text), view):
        while part:
            part = part[os.write(descriptor, part) :]


def _read(descriptor: int, deadline: float | None = None) -> tuple[dict[str, Any], bytearray]:
    """Return one message; raises EOFError at the end, TimeoutError at the deadline."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)

        def exactly(count: int) -> bytearray:
            buffer = bytearray(count)
            left = memoryview(buffer)
            while left:
                if deadline is not None and not selector.select(deadline - time.monotonic()):
                    raise TimeoutError
                got = os.readv(descriptor, [left])
                if not got:
                    raise EOFError
                left = left[got:]
            return buffer

        text, data = _SIZES.unpack(exactly(_SIZES.size))
        values: dict[str, Any] = json.loads(exactly(text))
        return values, exactly(data)
