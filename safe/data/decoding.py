"""Decoding in child processes: a file that crashes, hangs or bloats a decoder costs one clip.

The functions are those of `safe.data.audio` with the same results, bit for bit. There are as many
children as threads that call them at once; they stay for the next call.
"""

import atexit
import os
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from safe.child import Child, ChildFailed
from safe.data.audio import MIN_SECONDS, AudioFacts, Waveform
from safe.data.problems import AudioProblem

_MODULE = "safe.data.decoding_worker"
SECONDS, SECONDS_PER_MB = 60.0, 1.0
"""How long one file may take: 60 s, and 1 s per MB of the file."""
MEMORY = 2**30
"""Bytes that decoding one file may take: ten seconds of 64 channels at 300 kHz."""

_idle: list[Child] = []


def inspect(path: Path | str) -> AudioFacts:
    """Do what `audio.inspect` does; also raises AudioProblem (crashed, over_limits)."""
    facts, _ = _ask({"inspect": os.path.abspath(path)}, path)
    return AudioFacts(**facts)


def decode(
    path: Path | str,
    sample_rate: int,
    max_seconds: float,
    *,
    crop: str = "center",
    seed: int = 0,
    min_seconds: float = MIN_SECONDS,
) -> Waveform:
    """Do what `audio.decode` does; also raises AudioProblem (crashed, over_limits)."""
    how = {"crop": crop, "seed": seed, "min_seconds": min_seconds}
    question = {"decode": [os.path.abspath(path), sample_rate, max_seconds], "how": how}
    answer, samples = _ask(question, path)
    return Waveform(np.frombuffer(samples, np.float32), answer["seconds"], sample_rate)


@atexit.register
def close() -> None:
    """End the idle child processes; the next call starts others."""
    while _idle:
        _idle.pop().close()


def _ask(question: dict[str, Any], path: Path | str) -> tuple[dict[str, Any], bytearray]:
    try:
        child = _idle.pop()
    except IndexError:
        child = Child(_MODULE)
    try:
        size = os.path.getsize(path)
    except OSError:
        size = 0  # the child says what is wrong with it
    try:
        seconds = SECONDS + SECONDS_PER_MB * size / 2**20
        answer, data = child.ask(question, seconds=seconds, memory=MEMORY)
    except ChildFailed as failure:
        reason = "over_limits" if failure.limit else "crashed"
        raise AudioProblem(path, reason, str(failure)) from None
    finally:
        _idle.append(child)
    if "error" in answer:
        raise DataError(answer["error"])
    if "reason" in answer:
        raise AudioProblem(path, answer["reason"], answer["detail"])
    return answer, data
