"""Processes that fill one cache of embeddings, and die while they do."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from safe.data.cache import EmbeddingCache
from safe.data.manifests import Clip
from trials.sounds import good

SOUNDS, COPIES, PROCESSES, DIM = 12, 3, 3, 8


class Slow:
    """An encoder that writes down whom it encodes, and takes its time."""

    identity, sample_rate, max_seconds, crop_rule = "slow", 8000, 2.0, "center"

    def __init__(self, log: Path) -> None:
        self.log = log

    def encode(self, waveform: torch.Tensor, _lengths: object) -> torch.Tensor:
        """The first samples; a line of the log per clip."""
        time.sleep(0.005)
        with self.log.open("a") as file:
            file.write("".join(f"{row[:DIM].sum():.9e}\n" for row in waveform))
        return waveform[:, :DIM]


def fill(folder: str, rounds: int) -> dict[str, int]:
    """Let processes fill a cache at once, in every other round kill -9 one of them."""
    root, choose = Path(folder), random.Random(0)
    clips = []
    for number in range(SOUNDS + COPIES):
        path = root / f"{number}.wav"
        path.write_bytes(good(seed=number % SOUNDS, subtype="FLOAT"))
        clips.append(Clip(f"{number}", "train", path, ("a dog",), f"{number}", ""))
    figures: Counter[str] = Counter(killed=0, twice=0, absent=0, torn=0, failed=0)
    whole = _filled(root / "alone", root / "alone.log", clips)
    for round_ in range(rounds):
        cache, log = root / f"cache-{round_}", root / f"log-{round_}"
        log.touch()
        pids = [_fork(lambda: _filled(cache, log, clips)) for _ in range(PROCESSES)]  # noqa: B023
        dead = 0
        if round_ % 2:
            some = choose.randrange(SOUNDS)
            while log.read_bytes().count(b"\n") < some:
                time.sleep(0.001)
            os.kill(pids[0], signal.SIGKILL)
            dead = 1
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        killed = codes[0] == -signal.SIGKILL
        figures["killed"] += killed
        figures["failed"] += sum(code != 0 for code in codes[dead:])
        encoded = log.read_text().split()
        figures["twice"] += 0 if killed else len(encoded) - len(set(encoded))
        figures["absent"] += SOUNDS - len(set(encoded))
        index = (next(cache.glob("*/index.jsonl"))).read_bytes().count(b"\n")
        figures["twice"] += index - SOUNDS
        figures["torn"] += not np.array_equal(_filled(cache, root / "again.log", clips), whole)
        figures["absent"] += (root / "again.log").exists()
    return {"rounds": rounds, "processes": PROCESSES, "clips": len(clips), **figures}


def _filled(cache: Path, log: Path, clips: list[Clip]) -> np.ndarray:
    """Fill a cache, and what it then holds of the clips."""
    store = EmbeddingCache(cache, "slow", DIM)
    assert store.fill(clips, Slow(log), batch_size=2) == []
    return store.lookup(clips)


def _fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid
