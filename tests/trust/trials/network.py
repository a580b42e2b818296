"""An audit hook that keeps a process off the network and remembers who tried."""

from typing import Any

NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
           "socket.gethostbyname", "socket.gethostbyaddr", "socket.bind")  # fmt: skip
attempts: list[str] = []


def refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: whoever reaches for the network is told off and remembered."""
    if event in NETWORK:
        attempts.append(f"{event}{arguments[1:]}")
        raise PermissionError(f"no network in the trials: {event}")
