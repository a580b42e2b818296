"""Processes of a run that notice when one of them is gone, and do not wait for it for ever.

Rank 0 holds a TCP connection to every other process, and a thread at either end sends a beat each
second. Of a process that is killed, the kernel closes the connection; one that is stopped, or whose
machine is lost, falls silent. The thread beats however slow the process is, so a slow one is
never taken for a lost one. Nobody ends another process: each one that hears of a loss ends itself.
"""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import NoReturn, Self

import torch

from configs.errors import ConfigError
from configs.plain_text import plain
from safe import processes
from safe.training.interrupt import Interrupt

EXIT_LOST = 4
"""Exit code of a process that ended because another one of the same run was gone."""

_BEAT_SECONDS = 1.0
_SILENT_SECONDS = 30.0
"""Silence after which a process counts as stuck; all the others have ended well before 60 s."""
_ASLEEP_SECONDS = 5.0
"""When our own turn came so much too late, we were stopped and could hear nobody."""
_GRACE_SECONDS = 10.0
"""Time for an error that all processes have to end them all with its own message."""
_GOODBYE_SECONDS = 5.0
_CONNECT_SECONDS = 120.0
_RANK_BYTES = 4

_BEAT, _DONE, _FAILED, _LOST, _SIGNAL = b".", b"D", b"E", b"L", b"S"


class Heartbeat:
    """Context manager around the work of several processes; with one process it does nothing.

    A signal that one of them gets, all of them hear of within a second.

    Args:
        interrupt: the flag to pass on, and to set when another process was told to stop.

    Raises:
        ConfigError: a process cannot reach rank 0.
    """

    def __init__(self, interrupt: Interrupt) -> None:
        self.tell: Callable[[str], None] = lambda _: None
        """Also told why this process ends, such as a run's log."""
        self._interrupt, self._passed_on = interrupt, False
        self._names: list[str] = []
        self._peers: dict[int, Connection] = {}
        self._heard: dict[int, float] = {}
        self._failure: tuple[float, str] | None = None
        self._broken = False
        self._leave: bytes | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if processes.count() > 1:
            self._connect()
            self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None:
            return
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            # a lost process breaks its connections to torch, too: let the thread say which one
            self._broken = True
            self._thread.join(_GOODBYE_SECONDS)
        text = f"{type(error).__name__}: {error}"
        self._leave = _DONE if error is None else _FAILED + text.encode()[:2000]
        self._thread.join(2 * _GOODBYE_SECONDS)

    def _connect(self) -> None:
        """Join rank 0 and every other process; all of them get the same answer."""
        server = _listen() if processes.rank() == 0 else None
        port = 0 if server is None else server.getsockname()[1]
        me = (f"process {os.getpid()} on {socket.gethostname()}", port, secrets.token_bytes(16))
        everybody = processes.gather(me)
        self._names = [f"rank {rank} ({who})" for rank, (who, _, _) in enumerate(everybody)]
        _, port, token = everybody[0]
        address = (os.environ.get("MASTER_ADDR", "localhost"), port)
        problem = None
        try:
            if server is None:
                self._peers = {0: _call(address, token)}
            else:
                with server:
                    self._peers = _answer(server, token)
        except OSError as error:
            problem = f"{self._names[processes.rank()]}: {error}"
        if problems := [text for text in processes.gather(problem) if text is not None]:
            raise ConfigError(
                f"the processes cannot reach rank 0 at {address[0]}:{port} ({problems[0]}); "
                "MASTER_ADDR must name its machine, and no firewall may stand between the nodes"
            )
        self._heard = dict.fromkeys(self._peers, time.monotonic())

    def _watch(self) -> None:
        """Beat and listen until this process leaves, or has to."""
        due = time.monotonic()
        while self._leave is None:
            now = time.monotonic()
            if now >= due:
                if now - due > _ASLEEP_SECONDS:
                    self._heard = dict.fromkeys(self._peers, now)
                due = now + _BEAT_SECONDS
                self._send(_BEAT)
                self._pass_on_signal()
                self._judge(now)
            self._receive(max(0.0, due - time.monotonic()))
        self._pass_on_signal()
        self._send(self._leave)
        self._say_goodbye()

    def _send(self, message: bytes) -> None:
        for peer in self._peers.values():
            with suppress(OSError):  # that it is gone is seen when we listen
                peer.send_bytes(message)

    def _receive(self, seconds: float) -> None:
        """Take what the others have sent, waiting for it so long."""
        ready = wait(list(self._peers.values()), seconds)
        for rank, peer in list(self._peers.items()):
            if peer in ready:
                try:
                    message = peer.recv_bytes(4096)
                except (OSError, EOFError):
                    self._end(f"{self._names[rank]} is gone: killed, or its machine failed")
                self._heard[rank] = time.monotonic()
                self._take(rank, message[:1], message[1:].decode(errors="replace"))

    def _take(self, rank: int, kind: bytes, text: str) -> None:
        if kind == _DONE:
            self._peers.pop(rank).close()
        elif kind == _FAILED:
            self._peers.pop(rank).close()
            until = time.monotonic() + _GRACE_SECONDS
            self._failure = self._failure or (until, f"{self._names[rank]} stopped with {text}")
        elif kind == _LOST:
            self._end(text)
        elif kind == _SIGNAL:
            self._interrupt.hear(text)  # and rank 0 passes it on with its next beat

    def _pass_on_signal(self) -> None:
        if self._interrupt.requested and not self._passed_on:
            self._passed_on = True
            self._send(_SIGNAL + str(self._interrupt.signal_name).encode())

    def _judge(self, now: float) -> None:
        """End when a process has been silent for too long, or failed and we have not."""
        for rank in self._peers:
            if now - self._heard[rank] > _SILENT_SECONDS:
                self._end(
                    f"{self._names[rank]} has not answered for {_SILENT_SECONDS:g} s: stopped, or "
                    "its machine is lost"
                )
        if self._failure is not None and (self._broken or now > self._failure[0]):
            self._end(self._failure[1])

    def _end(self, text: str) -> NoReturn:
        """Tell the others, say why, and end this process, whatever its main thread waits for."""
        self._send(_LOST + text.encode())
        line = f"{text}; this process ends, too. What was saved is good: go on with --resume"
        with suppress(Exception):
            self.tell(line)
        # the main thread may hold the lock of a stream: not for ever
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)
        flush.start()
        flush.join(_BEAT_SECONDS)
        os.write(2, f"ProcessLost: {plain(line)}\n".encode())
        self._say_goodbye()
        os._exit(EXIT_LOST)

    def _say_goodbye(self) -> None:
        """Read until the others have closed: leaving at once could take our last words away."""
        until = time.monotonic() + _GOODBYE_SECONDS
        while self._peers and (left := until - time.monotonic()) > 0:
            ready = wait(list(self._peers.values()), left)
            for rank, peer in list(self._peers.items()):
                if peer in ready:
                    try:
                        closed = peer.recv_bytes(4096)[:1] in (_DONE, _FAILED, _LOST)
                    except (OSError, EOFError):
                        closed = True
                    if closed:
                        self._peers.pop(rank).close()
        for peer in self._peers.values():
            peer.close()


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, backlog=processes.count(), dualstack_ipv6=True
        )
    return socket.create_server(("", 0), backlog=processes.count())


def _answer(server: socket.socket, token: bytes) -> dict[int, Connection]:
    """Accept every other process of this run, and nobody else.

    Raises:
        OSError: somebody did not come in time.
    """
    peers: dict[int, Connection] = {}
    until = time.monotonic() + _CONNECT_SECONDS
    while len(peers) < processes.count() - 1:
        server.settimeout(max(0.1, until - time.monotonic()))
        try:
            accepted, _ = server.accept()
        except TimeoutError:
            missing = sorted(set(range(1, processes.count())) - peers.keys())
            raise TimeoutError(f"ranks {missing} did not connect") from None
        rank = _introduced(accepted, token)
        if rank is None:
            accepted.close()
            continue
        accepted.setblocking(True)
        peers[rank] = Connection(accepted.detach())
    return peers


def _introduced(caller: socket.socket, token: bytes) -> int | None:
    """The rank of a caller that says the run's token in time; None for a stranger."""
    until, word, size = time.monotonic() + _GOODBYE_SECONDS, b"", len(token) + _RANK_BYTES
    with suppress(OSError):
        while len(word) < size and (left := until - time.monotonic()) > 0:
            caller.settimeout(left)
            part = caller.recv(size - len(word))
            if not part:
                break
            word += part
    known = len(word) == size and secrets.compare_digest(word[: len(token)], token)
    return int.from_bytes(word[len(token) :], "big") if known else None


def _call(address: tuple[str, int], token: bytes) -> Connection:
    connection = socket.create_connection(address, timeout=_CONNECT_SECONDS)
    connection.sendall(token + processes.rank().to_bytes(_RANK_BYTES, "big"))
    connection.setblocking(True)
    return Connection(connection.detach())
