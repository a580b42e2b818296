"""A child process that does what a hostile file could make one do."""

import ctypes
import os
import signal
import time
from typing import Any

from safe.child import Answer, serve


def answer(question: dict[str, Any]) -> Answer:
    """Behave as asked."""
    (behaviour,) = question["parts"]
    if behaviour == "hang":
        time.sleep(60)
    if behaviour == "busy":
        while True:
            pass
    if behaviour == "memory":
        bytearray(2**30)
    if behaviour == "crash":
        ctypes.string_at(0)
    if behaviour == "leave":
        os._exit(7)
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return {"pid": os.getpid(), "blocked": blocked}, b""


if __name__ == "__main__":
    serve(answer)
