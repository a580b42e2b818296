"""A training that may be running, followed by its files; nothing is touched.

Only what was appended since the last look is read: a long run has many rows.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.errors import SafeError
from configs.json_files import open_regular, parse_json
from probes.findings.finding import Finding
from probes.record import Record
from reports.errors import ReportError
from reports.owner import read_owner
from reports.run import Run, is_placed, read_run

_STALE = 600
"""Seconds without a new row after which a training on another machine may be dead."""


class Tail:
    """The JSON lines of a file that is being appended to.

    It starts anew when the file was cut back or replaced, as by a run that resumes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._position, self._inode = path, 0, -1
        self.rows: list[dict[str, Any]] = []
        """Every whole row so far."""

    def poll(self) -> bool:
        """Read what is new; returns whether anything was.

        Raises:
            FileError: the file is a pipe, too large, or refused.
        """
        try:
            with open_regular(self.path) as file:
                state = os.fstat(file.fileno())
                if state.st_size < self._position or state.st_ino != self._inode:
                    self._position, self._inode, self.rows = 0, state.st_ino, []
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return False
        whole = new[: new.rfind(b"\n") + 1]  # a line that is being written waits
        self._position += len(whole)
        self.rows += [row for line in whole.splitlines() if (row := _row(line)) is not None]
        return bool(whole)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


@dataclass(frozen=True)
class Life:
    """Whether the process of a run lives."""

    word: str
    """``running``, ``finished``, ``stopped`` or ``died``."""
    detail: str

    @property
    def over(self) -> bool:
        """Whether there is nothing more to come."""
        return self.word != "running"


class Watched:
    """A run that may be growing.

    Args:
        folder: of the run.

    Raises:
        ReportError: no run there.
    """

    def __init__(self, folder: Path) -> None:
        self._first = read_run(folder)
        self.folder = self._first.path
        self._metrics = Tail(self.folder / "metrics.jsonl")
        self._probes = Tail(self.folder / "probes.jsonl")
        self._run, self._findings = self._first, tuple[Finding, ...]()
        self.poll()

    def poll(self) -> None:
        """Look for what was appended."""
        measured_anew = self._probes.poll()
        evaluated = (self.folder / "evaluation.json").exists() and not self._run.evaluation
        if not (self._metrics.poll() or measured_anew or evaluated):
            return
        rows = [row for row in self._metrics.rows if is_placed(row)]
        self._run = replace(
            self._first,
            steps=tuple(r for r in rows if r.get("kind") == "step"),
            evaluations=tuple(r for r in rows if r.get("kind") == "evaluation"),
            probed=tuple(_records(self._probes.rows)),
            evaluation=read_run(self.folder).evaluation if evaluated else self._run.evaluation,
        )
        if measured_anew or evaluated:
            self._findings = self._run.findings

    @property
    def run(self) -> Run:
        """The run as it was at the last poll."""
        return self._run

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the newest records say."""
        return self._findings

    def life(self) -> Life:
        """Whether its process lives, from ``run.lock`` and, for other machines, the files' age."""
        done = "all steps done" if self.run.finished else f"stopped at step {self.run.last_step}"
        try:
            owner = read_owner(self.folder)
        except ReportError:
            return Life("running", "its run.lock cannot be read")
        if owner is None:
            return Life("finished" if self.run.finished else "stopped", done)
        if owner.lives is None:
            age = self._age()
            quiet = f", silent for {_duration(age)}: it may have died" if age > _STALE else ""
            return Life("running", f"process {owner.pid} on {owner.host}{quiet}")
        if owner.lives:
            return Life("running", f"process {owner.pid}")
        return Life("died", f"process {owner.pid} is gone; {done}")

    def _age(self) -> float:
        files = (self.folder / name for name in ("metrics.jsonl", "log.txt", "run.lock"))
        return time.time() - max((f.stat().st_mtime for f in files if f.exists()), default=0.0)

    def total_steps(self) -> int | None:
        """How many optimizer steps the run has to take; None before its first step."""
        run = self.run
        if not run.epochs_done:
            return None
        by_epochs = round(run.last_step * run.config.optim.epochs / run.epochs_done)
        return min(by_epochs, run.config.optim.max_steps or by_epochs)

    def last_words(self) -> str:
        """The newest line of the run's log, without its date."""
        try:
            with open_regular(self.folder / "log.txt") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return ""
        return lines[-1].partition(" ")[2] if lines else ""


def _records(rows: Sequence[dict[str, Any]]) -> list[Record]:
    found = []
    for row in rows:
        try:
            found.append(Record.from_json(row))
        except SafeError:  # the header, or a damaged line
            continue
    return found


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
