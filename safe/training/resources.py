"""What a training costs: wall time of its steps over all sittings, and the peak of memory."""

import json
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from configs.json_files import read_json
from safe.evaluation.metrics import Scores
from safe.training.callbacks import Callback, Step
from safe.training.durable import write_atomically

if TYPE_CHECKING:
    from safe.training.experiment import Experiment
    from safe.training.stage_a import StageA

FILE_NAME = "resources.json"
_EVERY_SECONDS = 60.0


class Resources(Callback):
    """Writes ``resources.json`` once a minute, after every evaluation and at the end.

    ``train_seconds``: wall time of optimizer steps, also of steps that a killed process had to
    take again; ``peak_bytes`` with ``memory``: of the GPU ("gpu", allocated by torch) or, without
    one, of the process ("process", resident).
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self._seconds, self._peak = 0.0, 0
        self._written = time.monotonic()

    @override
    def on_run_begin(self, folder: Path, experiment: "Experiment") -> None:
        self._file = folder / FILE_NAME
        with suppress(OSError, ValueError, KeyError, TypeError):
            earlier: dict[str, Any] = read_json(self._file)
            self._seconds = float(earlier["train_seconds"])
            self._peak = int(earlier["peak_bytes"])

    @override
    def on_step_end(self, trainer: "StageA", step: Step) -> None:
        self._seconds += step.seconds
        if time.monotonic() - self._written > _EVERY_SECONDS:
            self._write()

    @override
    def on_evaluation(
        self, trainer: "StageA", epoch: float, scores: Scores, captions: dict[str, str]
    ) -> None:
        self._write()

    @override
    def on_train_end(self, trainer: "StageA") -> None:
        self._write()

    def _write(self) -> None:
        assert self._file is not None, "on_run_begin comes first"
        where, peak = peak_memory()
        self._peak = max(self._peak, peak)
        values = {
            "train_seconds": round(self._seconds, 3), "peak_bytes": self._peak, "memory": where
        }  # fmt: skip
        write_atomically(self._file, json.dumps(values, indent=2) + "\n")
        self._written = time.monotonic()


def peak_memory() -> tuple[str, int]:
    """Where it was measured, and the most bytes in use there so far."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return "gpu", max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return "process", peak if sys.platform == "darwin" else peak * 1024  # elsewhere kilobytes
