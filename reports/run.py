"""A run directory as the reports see it: everything that was written down, nothing computed.

Any file may be missing, cut off or damaged: what cannot be read is left out and its reason kept in
``damaged``, so that a crashed run can be reported on as well. Only ``config.json`` must be there.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import FileError, SafeError
from configs.json_files import parse_json, read_json, whole_lines
from configs.schema import RunConfig
from probes.findings.facts import Facts
from probes.findings.finding import Finding
from probes.findings.judge import judge
from probes.record import Record, RecordLog
from probes.scores import score_records
from reports.errors import ReportError
from reports.owner import read_owner
from reports.printed import as_float

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
CHECK = "check"
"""Folder in a run where ``safe-probe check RUN --output RUN/check`` leaves its measurements."""


@dataclass(frozen=True)
class Run:
    """What a training left behind."""

    path: Path
    """Folder of the run."""
    config: RunConfig
    steps: tuple[Row, ...] = ()
    """One row per optimizer step: step, epoch, loss, grad_norm/*, lr/*, gate/*, skipped, ..."""
    evaluations: tuple[Row, ...] = ()
    """One row per evaluation during training: step, epoch, cider, cider_low, cider_high, clips."""
    probed: tuple[Record, ...] = ()
    """What the probes measured, oldest first."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """The final scores with controls and floors; empty when there are none."""
    captions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Clip id to caption by condition (``own audio``, ``another clip's audio``, ...)."""
    references: Mapping[str, Row] = field(default_factory=dict)
    """Clip id to ``captions`` (what people wrote) and ``audio`` (path of its sound, or None)."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, devices, command."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """``train_seconds``, ``peak_bytes``, ``memory`` ("gpu" or "process"), ``parameters``."""
    problems: tuple[Row, ...] = ()
    """Clips that could not be used, with reasons."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """File to the reason why it, or a part of it, could not be read."""
    checkpoint: int | None = None
    """Step of the checkpoint that is reported on; None for the whole run."""
    running: bool = False
    """Whether a process on this machine is training it now."""
    baseline: "Run | None" = None
    """The run to compare with, when there is one."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.name

    @cached_property
    def last_step(self) -> int:
        """Optimizer steps done."""
        return max((int(row["step"]) for row in self.steps), default=0)

    @property
    def now(self) -> int:
        """Optimizer steps behind what is reported on."""
        return self.last_step if self.checkpoint is None else self.checkpoint

    @cached_property
    def epochs_done(self) -> float:
        """Epochs completed, fractional."""
        return max((float(row["epoch"]) for row in self.steps), default=0.0)

    @property
    def finished(self) -> bool:
        """Whether all steps of the configuration were done."""
        most = self.config.optim.max_steps
        if most is not None and self.last_step >= most:
            return True
        return self.epochs_done >= self.config.optim.epochs - 1e-6

    @property
    def diverged(self) -> bool:
        """Whether it stopped because steps in a row were not finite."""
        limit = self.config.optim.max_bad_steps
        last = self.steps[-limit:]
        return not self.finished and len(last) == limit and all(r.get("skipped") for r in last)

    def fill(self, command: str) -> str:
        """``command`` for a shell with this run, or its checkpoint, for every ``RUN``.

        A checkpoint's measurements (``RUN/check``) lie in a folder of their own.
        """
        step = self.checkpoint
        subject = self.path if step is None else self.path / "checkpoints" / step_folder(step)
        words = {"RUN": str(subject), f"RUN/{CHECK}": str(self.path / check_folder(step))}
        return re.sub(rf"\bRUN\b(/{CHECK})?", lambda f: shlex.quote(words[f[0]]), command)

    def frame(self) -> "pd.DataFrame":
        """One row per optimizer step, with ``cider*`` where an evaluation followed it."""
        import pandas as pd

        steps = pd.DataFrame(self.steps, columns=["step"] if not self.steps else None)
        scores = [
            {k: v for k, v in row.items() if k == "step" or k.startswith("cider")}
            for row in self.evaluations
        ]
        columns = None if scores else ["step"]
        return steps.merge(pd.DataFrame(scores, columns=columns), on="step", how="left")

    @cached_property
    def log(self) -> RecordLog:
        """Probes and scores as records, oldest first."""
        return RecordLog([*self.probed, *score_records(self.evaluation, self.now)])

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What the records mean: the root cause first, then along the chain."""
        return tuple(judge(self.log))

    @property
    def scores(self) -> Mapping[str, Any]:
        """Of the captions that heard their own clip; empty without a final evaluation."""
        found = self.evaluation.get("scores")
        return found if isinstance(found, dict) else {}

    @property
    def per_clip_cider(self) -> dict[str, float]:
        """Clip id to CIDEr x 100 in the final evaluation; NaN for what is no number."""
        found = self.scores.get("per_clip_cider")
        return {k: as_float(v) for k, v in found.items()} if isinstance(found, dict) else {}

    @cached_property
    def facts(self) -> Facts:
        """The newest value of every record."""
        return Facts(self.log)

    @cached_property
    def start(self) -> Facts:
        """The records of step 0 only: the model before training."""
        return Facts(r for r in self.probed if r.step == 0)


def read_run(path: Path | str) -> Run:
    """The run in a folder; of one of its checkpoints what was known up to its step.

    Args:
        path: a run, its ``adapter`` folder, or a checkpoint in it.

    Raises:
        ReportError: no run there, or its configuration cannot be read.
    """
    folder, step = _locate(Path(path))
    reader = _Reader(folder)
    rows = reader.metrics()
    if step is not None:
        rows = [row for row in rows if row.get("step", 0) <= step]
    config = _config(folder)
    scored = reader.scored(step, config.data.test_split)
    return Run(
        path=folder,
        config=config,
        steps=tuple(r for r in rows if r.get("kind") == "step"),
        evaluations=tuple(r for r in rows if r.get("kind") == "evaluation"),
        probed=tuple(r for r in reader.records(step) if step is None or r.step <= step),
        evaluation=reader.json(f"{scored}evaluation.json", dict, float) or {},
        captions={r["clip"]: r for r in reader.lines(f"{scored}captions/final.jsonl", "clip")},
        references={
            r["clip"]: r for r in reader.lines(f"{scored}captions/references.jsonl", "clip")
        },
        environment=reader.mapping("environment.json"),
        resources=reader.mapping("resources.json") if step is None else {},  # of the whole run
        problems=tuple(p for p in reader.json("problems.json", list) or () if isinstance(p, dict)),
        damaged=reader.damaged,
        checkpoint=step,
        running=_is_training(folder),
    )


def step_folder(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}"


def check_folder(step: int | None) -> str:
    """Where ``safe-probe check --output`` leaves its measurements of a run or a checkpoint."""
    return CHECK if step is None else f"{CHECK}/{step_folder(step)}"


def _locate(path: Path) -> tuple[Path, int | None]:
    folder = path.resolve()
    if folder.name == "adapter":
        folder = folder.parent
    found = re.fullmatch(r"step-(\d+)", folder.name)
    if found and folder.parent.name == "checkpoints":
        return folder.parent.parent, int(found[1])
    if (folder / "config.json").is_file():
        return folder, None
    runs = sorted(p.parent.name for p in folder.glob("*/config.json"))
    hint = f"; runs in it: {', '.join(runs[:5])}" if runs else ""
    raise ReportError(f"{path} is no run: it has no config.json{hint}")


def _config(folder: Path) -> RunConfig:
    file = folder / "config.json"
    try:
        return RunConfig.from_dict(read_json(file))
    except FileError as error:
        raise ReportError(str(error)) from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ReportError(f"{file} cannot be read: {error}") from None


def _is_training(folder: Path) -> bool:
    try:
        owner = read_owner(folder)
    except ReportError:
        return False
    return owner is not None and bool(owner.lives)


def is_placed(row: Row) -> bool:
    """Whether a row of metrics.jsonl has a step and an epoch that can be one."""
    step, epoch = row.get("step"), row.get("epoch")
    if not isinstance(step, int) or not isinstance(epoch, int | float):
        return False
    return 0 <= step < 2**53 and 0 <= epoch < 2**53 and not {type(step), type(epoch)} & {bool}


class _Reader:
    """Reads the files of a run, and keeps what went wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: dict[str, str] = {}

    def json(self, name: str, kind: type, parse_constant: Callable[[str], Any] = str) -> Any:
        """A JSON file holding a ``kind``; None when absent or damaged. NaN stays a word."""

        def read(path: Path) -> Any:
            value = read_json(path, parse_constant)
            if not isinstance(value, kind):
                raise ValueError(f"holds a {type(value).__name__}, not a {kind.__name__}")
            return value

        return self._read(name, read)

    def mapping(self, name: str) -> Row:
        return self.json(name, dict) or {}

    def lines(self, name: str, key: str = "kind") -> list[Row]:
        """JSON lines with ``key``; a torn last line is normal, other bad lines are damage."""
        return self._read(name, lambda path: self._rows(path, name, key)) or []

    def _rows(self, path: Path, name: str, key: str) -> list[Row]:
        rows: list[Row] = []
        for number, line in enumerate(whole_lines(path), 1):
            try:
                row = parse_json(line)
                if not isinstance(row, dict) or not isinstance(row.get(key), str):
                    raise ValueError(f"no object with a text {key!r}")
                rows.append(row)
            except ValueError as error:
                self.damaged.setdefault(name, f"line {number}: {error}")
        return rows

    def metrics(self) -> list[Row]:
        """Rows of metrics.jsonl with a step and an epoch that can be one."""
        rows = self.lines("metrics.jsonl")
        good = [row for row in rows if is_placed(row)]
        if len(good) < len(rows):
            without = f"{len(rows) - len(good)} rows without a step or an epoch are left out"
            self.damaged.setdefault("metrics.jsonl", without)
        return good

    def records(self, step: int | None) -> list[Record]:
        """Of the training's probes, and of a later check; in the order of their steps."""
        found: list[Record] = []
        for name in ("probes.jsonl", f"{check_folder(step)}/records.jsonl"):
            found += self._read(name, RecordLog.read) or []
        return sorted(found, key=lambda record: record.step)

    def scored(self, step: int | None, split: str) -> str:
        """Where the final scores lie: where ``safe-train evaluate`` put them later, or the run."""
        later = f"evaluations/{'adapter' if step is None else step_folder(step)}-{split}/"
        if step is None and not (self.folder / later / "evaluation.json").exists():
            return ""
        return later

    def _read(self, name: str, read: Callable[[Path], Any]) -> Any:
        try:
            return read(self.folder / name)
        except FileNotFoundError:
            return None
        except FileError as error:
            self.damaged[name] = error.why
            return None
        except (OSError, ValueError, SafeError) as error:
            self.damaged[name] = str(error)
            return None
