"""Whether the workshop would notice somebody who reaches for the network."""

import socket
import urllib.error
import urllib.request

from trials.network import attempts


def reach_out() -> dict[str, int]:
    """Try three ways; count those that were refused, and forget that they were tried."""
    refused = 0
    for way in (
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
        lambda: urllib.request.urlopen("http://localhost:9"),
    ):
        try:
            way()
        except (PermissionError, urllib.error.URLError):
            refused += 1
    refused = min(refused, len(attempts))
    attempts.clear()
    return {"refused": refused}
