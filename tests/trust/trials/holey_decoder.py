"""The decoding process with a library that has holes: some names of files reach them."""

import ctypes
import os
import time
from typing import Any

from safe.child import Answer, serve
from safe.data import decoding_worker


def answer(question: dict[str, Any]) -> Answer:
    """Fall into the hole that the file's name asks for, else decode."""
    path = str(question.get("inspect") or question["decode"][0])
    if "crash" in path:
        ctypes.string_at(0)
    if "hang" in path:
        time.sleep(60)
    if "bloat" in path:
        bytearray(2**32)
    if "leave" in path:
        os._exit(7)
    return decoding_worker.answer(question)


if __name__ == "__main__":
    serve(answer)
