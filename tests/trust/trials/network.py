"""An audit hook that keeps a process off the network and remembers who tried."""

import socket
from typing import Any

NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
           "socket.gethostbyname", "socket.gethostbyaddr", "socket.bind")  # fmt: skip
attempts: list[str] = []
_here: set[Any] = set()


def allow_this_machine() -> None:
    """Let the processes of one training find each other: they talk over loopback."""
    _here.update({"localhost", "127.0.0.1", "::1", "", None, "0.0.0.0", "::", socket.gethostname()})


def refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: whoever reaches for the network is told off and remembered."""
    if event in NETWORK and _host(arguments) not in _here:
        attempts.append(f"{event}{arguments[1:]}")
        raise PermissionError(f"no network in the trials: {event}")


def _host(arguments: tuple[Any, ...]) -> Any:
    """Whom a call is about: (host, ...), or (socket, (host, port))."""
    if not isinstance(arguments[0], socket.socket):
        return arguments[0]
    return arguments[1][0] if isinstance(arguments[1], tuple) else arguments[1]
