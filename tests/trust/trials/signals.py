"""Trainings that are asked to stop, in every phase, once, twice, late and by several signals."""

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from configs.schema import RunConfig
from safe import cli
from safe.data import cache
from safe.training import run as runs
from safe.training import saving
from safe.training.checkpoint import latest_good
from safe.training.run_directory import RunDirectory
from trials.training import results

TERM, USR1, USR2, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT
PATTERNS: tuple[tuple[list[int], list[int]], ...] = (
    ([TERM], [TERM, USR2]), ([USR1, USR1], []), ([INT], []), ([USR2], [TERM]), ([INT, INT], []),
    ([TERM], []), ([USR1], []), ([INT, TERM], []), ([TERM, TERM, TERM], []), ([USR1, TERM], []),
    ([INT], [INT]),
)  # fmt: skip
"""Signals at the chosen moment, and late ones: while the run is leaving."""
PLACES: tuple[tuple[str, Any, str, int], ...] = (
    ("training", runs.StageA, "advance", 2), ("saving", saving, "save_training_state", 1),
    ("evaluating", runs.Evaluator, "quick", 1), ("scoring", runs.Evaluator, "full", 1),
    ("caching", cache, "encode_batch", 1),
)  # fmt: skip
"""What is going on, and the call (counted from 1) before which the signals come."""


def stop(folder: str, config: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Stop a training and go on with it, ``rounds`` times; the end must be as if undisturbed."""
    root, name, slowest = Path(folder), RunConfig.from_dict(config).name, 0.0
    RunDirectory.create(root, "whole", config).close()
    _command(root / "whole", name, lambda: None)
    whole = results(root / "whole")
    figures: Counter[str] = Counter(wrong_code=0, torn=0, differ=0, unheard=0)
    for round_ in range(rounds):
        _, owner, function, call = PLACES[round_ % len(PLACES)]
        now, late = PATTERNS[round_ % len(PATTERNS)]
        run, told = root / f"run-{round_}", root / f"told-{round_}"
        RunDirectory.create(root, run.name, config).close()
        os.environ["SAFE_PROBE_CACHE"] = str(root / f"cache-{round_ % 2}")
        if owner is cache:
            shutil.rmtree(os.environ["SAFE_PROBE_CACHE"], ignore_errors=True)

        def arm() -> None:
            _send_before(owner, function, call, now, told)  # noqa: B023 - called at once
            _send_before(runs._Training, "_how_to_go_on", 1, late, told)  # noqa: B023

        code = _command(run, name, arm)
        figures["unheard"] += not told.exists()
        if told.exists():
            slowest = max(slowest, time.monotonic() - json.loads(told.read_text()))
        figures["wrong_code"] += code != 3
        figures["torn"] += bool(latest_good(run / "checkpoints")[1])
        _command(run, name, lambda: None)
        figures["differ"] += results(run) != whole
        shutil.rmtree(run)
    return {"rounds": rounds, "seconds": round(slowest, 1), "files": len(whole), **figures}


def _command(run: Path, name: str, arm: Callable[[], None]) -> int:
    """Go on with a run in a fork, by the command line; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            torch.set_num_threads(1)  # as in `training`: two threads at once would end in an error
            arm()
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the fork ends
            code = cli.main([name, "--resume", str(run), "--device", "cpu", "--probe-every", "0"])
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _send_before(owner: Any, name: str, call: int, signals: list[int], told: Path) -> None:
    """Let this process send itself signals just before the call of a function."""
    original, count = getattr(owner, name), 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            if not told.exists():
                told.write_text(json.dumps(time.monotonic()))
            for number in signals:
                os.kill(os.getpid(), number)
        return original(*args, **options)

    setattr(owner, name, wrapped)
