"""Keeps the tests on this machine: whoever reaches for another one gets what a cut cable gives."""

import errno
import ipaddress
import socket
import sys
from typing import Any

_TO_ADDRESS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_BY_NAME = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def is_here(host: Any) -> bool:
    """Whether an address is this machine's own."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def stay_here() -> None:
    """Refuse what is sent to other machines, and questions for their names, in this process."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _TO_ADDRESS:
        address = arguments[1]  # a path is that of a socket of this machine
        host = address[0] if isinstance(address, tuple) else None
    elif event in _BY_NAME:
        host = arguments[0]
    else:
        return
    if not is_here(host):
        raise OSError(errno.ENETUNREACH, f"no test reaches another machine: {host}")
