"""Checkpoint saves that are killed or refused, at random moments and at every single call."""

import errno
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from configs.errors import CheckpointError
from safe.training import checkpoint

PARTS, PART_BYTES = 4, 50_000


def content(step: int) -> bytes:
    """What each part of the checkpoint of ``step`` holds."""
    return step.to_bytes(4, "little") * (PART_BYTES // 4)


def save(parent: Path, step: int, **options: Any) -> Path:
    """Publish a checkpoint of four parts, each written in two halves."""

    def write(folder: Path) -> None:
        for part in range(PARTS):
            descriptor = os.open(folder / f"part-{part}", os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                for half in (content(step)[: PART_BYTES // 2], content(step)[PART_BYTES // 2 :]):
                    left = memoryview(half)
                    while left:
                        left = left[os.write(descriptor, left) :]
            finally:
                os.close(descriptor)

    metadata = {"step": step}
    return checkpoint.publish(
        parent, checkpoint.step_name(step), write, metadata=metadata, **options
    )


def whole(folder: Path) -> bool:
    """Whether a checkpoint is what `save` was asked for, without asking its manifest."""
    step = checkpoint.step_of(folder.name)
    try:
        return all(
            (folder / f"part-{part}").read_bytes() == content(step or 0) for part in range(PARTS)
        )
    except OSError:
        return False


def look(parent: Path, told: int) -> Counter[str]:
    """What is wrong in a folder of checkpoints when ``told`` was the last save that returned."""
    found = checkpoint.checkpoints(parent)
    torn = [path for path in found if not whole(path)]
    best = max((checkpoint.step_of(p.name) or 0 for p in found if p not in torn), default=0)
    return Counter(torn=len(torn), lost=int(best < told))


def leftovers(parent: Path) -> int:
    """How many temporary folders there are."""
    return sum(path.name.startswith(".") for path in parent.iterdir())


def kill(folder: str, rounds: int, seed: int = 0) -> dict[str, int]:
    """Kill -9 a process that saves back to back, ``rounds`` times, going on where it was."""
    parent, choose = Path(folder), random.Random(seed)
    figures: Counter[str] = Counter(torn=0, lost=0, halfway=0)
    for _ in range(rounds):
        told = _killed_saver(parent, choose.uniform(0, 0.04))
        figures += look(parent, told)
        figures["halfway"] += bool(leftovers(parent))
    save(parent, 10**7)
    return {"kills": rounds, "torn": 0, "lost": 0, **figures, "unswept": leftovers(parent)}


def _killed_saver(parent: Path, delay: float) -> int:
    """Let a fork save until it is killed, ``delay`` seconds after its first save; its last word."""
    last = checkpoint.newest(parent)
    step = 0 if last is None else checkpoint.step_of(last.name) or 0
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        while True:
            step += 1
            save(parent, step)
            os.write(writing, step.to_bytes(4, "little"))
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        told = pipe.read(4)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        told += pipe.read()
    os.waitpid(pid, 0)
    return int.from_bytes(told[len(told) // 4 * 4 - 4 :][:4], "little")


def die() -> NoReturn:
    """End as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def no_space() -> NoReturn:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTIONS: dict[str, Callable[[], NoReturn]] = {"kill": die, "full": no_space}


def at_every_call(folder: str, action: str, stride: int = 1) -> dict[str, int]:
    """Save with ``action`` in place of the first, second, ... file-system call of the save."""
    root, figures, call = Path(folder), Counter[str](torn=0, lost=0, untold=0, unswept=0), 0
    for step in (1, 2):
        save(root / "model", step)
    (root / "model" / ".tmp-stale-1").mkdir()
    while True:
        parent = root / f"call-{call}"
        shutil.copytree(root / "model", parent)
        ended, text = _save_with(parent, call, ACTIONS[action])
        figures += look(parent, told=3 if ended == "saved" else 2)
        figures["untold"] += ended == "failed" and str(parent) not in text
        figures["wrong_error"] += ended == "crashed"
        figures[ended] += 1
        save(parent, 4)
        figures["unswept"] += leftovers(parent)
        if ended == "saved" and not text:
            break
        shutil.rmtree(parent)
        call += stride
    names = ("torn", "lost", "untold", "unswept", "wrong_error")
    return {"calls": call, **{name: figures[name] for name in names}}


def _save_with(parent: Path, call: int, action: Callable[[], NoReturn]) -> tuple[str, str]:
    """Save step 3 in a fork: saved, failed, crashed or killed, and what was said."""
    (reading, writing), tell = os.pipe(), os.write
    pid = os.fork()
    if pid == 0:
        counted = _count_calls(call, action)
        try:
            save(parent, 3)
            word = "saved", "" if counted() <= call else "after the action"
        except CheckpointError as error:
            word = "failed", str(error)
        except BaseException as error:
            word = "crashed", repr(error)
        tell(writing, "\n".join(word).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "killed", ""
    ended, _, text = told.partition("\n")
    return ended, text


def _count_calls(call: int, action: Callable[[], NoReturn]) -> Callable[[], int]:
    """Put ``action`` in the place of file-system call number ``call`` (from 0) of this process."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == call + 1:
            action()

    def audit(event: str, _arguments: tuple[Any, ...]) -> None:
        if event == "open" or event.startswith("os."):
            step()

    for name in ("write", "fsync", "close"):  # these raise no audit event
        original = getattr(os, name)

        def wrapped(*args: Any, original: Callable[..., Any] = original) -> Any:
            step()
            return original(*args)

        setattr(os, name, wrapped)
    sys.addaudithook(audit)
    return lambda: count
