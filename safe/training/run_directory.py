"""The folder of one run, and which process may write into it.

OUTPUT_ROOT/NAME holds config.json, config.yaml, environment.json, metrics.jsonl, log.txt, run.lock,
captions/, checkpoints/ and, when the run is finished, adapter/. OUTPUT_ROOT/latest is a link to the
run that was created or opened last.
"""

import datetime
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from configs.errors import CheckpointError, ConfigError, FileError
from configs.json_files import read_json, require_regular
from configs.plain_text import plain
from safe.checkpoint_manifest import as_json
from safe.training.durable import point_symlink, sweep_files, write_atomically
from safe.training.environment import describe_environment
from safe.training.metrics_log import MetricsLog
from safe.training.run_lock import RunLock

ADAPTER_NAME = "adapter"
LATEST_NAME = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunDirectory:
    """A run folder owned by this process; use it as a context manager, or call `close`.

    Make one with `create` or `open`, in the main process only.
    """

    def __init__(self, path: Path, lock: RunLock) -> None:
        self.path = path
        self._lock = lock
        self._metrics = MetricsLog(self.metrics_path)

    @classmethod
    def create(cls, output_root: Path, name: str | None, config: dict[str, Any]) -> "RunDirectory":
        """Make a new run folder, write what the run is made of, and point `latest` at it.

        Args:
            output_root: folder of runs; made when absent.
            name: folder name; by default the config's name with date and time, always a new one.
            config: the resolved config as JSON values (tuples become lists).

        Raises:
            ConfigError: the name is not usable, or has a run already.
            CheckpointError: the folder cannot be written.
        """
        output_root = Path(output_root)
        with _readable_errors("cannot create a run folder in", output_root):
            output_root.mkdir(parents=True, exist_ok=True)
            try:
                path = make_folder(output_root, name, str(config.get("name", "run"))).resolve()
            except FileExistsError:
                raise _taken(output_root / str(name)) from None
            try:
                _write_config(path, config)
                return cls._take(path)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)  # made a moment ago, so nothing is lost
                raise

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Take over an existing run folder (or the `latest` link) in order to go on with it.

        Raises:
            CheckpointError: no run folder, in use by a living process, not writable, or with a link
            in it.
        """
        read_config(path)
        path = Path(path).resolve()
        with _readable_errors("cannot open the run folder", path):
            _refuse_links(path)
            return cls._take(path)

    @classmethod
    def _take(cls, path: Path) -> "RunDirectory":
        lock = RunLock(path)
        try:
            (path / "captions").mkdir(exist_ok=True)
            (path / "checkpoints").mkdir(exist_ok=True)
            sweep_files(path)
            sweep_files(path / "captions")
            _write_environment(path)
            _point_latest(path)
            require_regular(path / "metrics.jsonl")  # they are opened for writing
            require_regular(path / "log.txt")
            return cls(path, lock)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def config(self) -> dict[str, Any]:
        """The config that the run was created with, as JSON values."""
        return read_config(self.path)

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, for `checkpoint.publish` and `checkpoint.latest_good`."""
        return self.path / "checkpoints"

    @property
    def captions(self) -> Path:
        """Folder of generated captions, a file per evaluation."""
        return self.path / "captions"

    @property
    def adapter(self) -> Path:
        """Where the finished run's adapter goes; not made here."""
        return self.path / ADAPTER_NAME

    @property
    def metrics_path(self) -> Path:
        """The file of metrics rows."""
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        """The file of log lines."""
        return self.path / "log.txt"

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append a row with an integer "step" to metrics.jsonl (see `MetricsLog.append`).

        Raises:
            CheckpointError: the row cannot be written.
        """
        with _readable_errors("cannot write metrics into", self.metrics_path):
            self._metrics.append(row)

    def sync_metrics(self) -> None:
        """Make all rows durable; call it before publishing a checkpoint.

        Raises:
            CheckpointError: the disk failed.
        """
        with _readable_errors("cannot write metrics into", self.metrics_path):
            self._metrics.sync()

    def truncate_metrics(self, step: int) -> int:
        """On resume at `step`: drop the rows of later steps and return how many they were.

        Use -1 when there is no checkpoint to resume from. For equal files, log everything of a
        step before its checkpoint is published.

        Raises:
            CheckpointError: the file is damaged or cannot be written; it is unchanged then.
        """
        with _readable_errors("cannot cut back metrics in", self.metrics_path):
            return self._metrics.truncate(step)

    def log(self, message: str) -> None:
        """Append a message to log.txt with date and time (UTC).

        Raises:
            CheckpointError: the file cannot be written.
        """
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with (
            _readable_errors("cannot write the log", self.log_path),
            self.log_path.open("a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write(f"{now} {plain(message)}\n")

    def close(self) -> None:
        """Close the files and give the folder up; a second call does nothing."""
        with _readable_errors("cannot close the run folder", self.path):
            try:
                self._metrics.close()
            finally:
                self._lock.release()


def read_config(path: Path) -> dict[str, Any]:
    """Return a run folder's config without taking the folder over.

    Raises:
        CheckpointError: `path` is no run folder, or its config.json is damaged.
    """
    file = Path(path) / "config.json"
    try:
        config = read_json(file)
    except (FileNotFoundError, FileError) as error:
        raise CheckpointError(
            f"{path} is no run folder: {error}; pass a folder such as runs/NAME or runs/latest"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: holds no JSON object, so it is no run's config")
    return config


def _refuse_links(path: Path) -> None:
    """Raise CheckpointError for a link in a run folder, which may be a stranger's.

    What is written would go where it leads.
    """
    for entry in sorted(path.iterdir()):
        if entry.is_symlink():
            raise CheckpointError(
                f"{entry} is a link, to {entry.readlink()}; a run is gone on with in "
                "its own files and folders: put there what the link leads to (the run folder "
                "itself may be a link)"
            )


def check_new_run(output_root: Path, name: str | None) -> None:
    """Raise ConfigError when a run cannot be made in `output_root` under `name`.

    Called before anything expensive; nothing is made.
    """
    if name is not None:
        _check_name(name)
        if (output_root / name).exists():
            raise _taken(output_root / name)
    parent = next(p for p in (output_root, *output_root.absolute().parents) if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ConfigError(f"--output {output_root}: {parent} is no folder that can be written to")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name == LATEST_NAME:
        raise ConfigError(
            f"run name {name!r}: use at most 100 letters, digits, '.', '_' and "
            f"'-', beginning with a letter or digit, and not {LATEST_NAME!r}"
        )


def _taken(path: Path) -> ConfigError:
    return ConfigError(f"run {path} exists already; go on with --resume, or choose another name")


def make_folder(root: Path, name: str | None, config_name: str) -> Path:
    """Make a folder in ``root``, for one process alone: ``name``, or the config's with the time.

    Raises:
        ConfigError: the name is not usable for a run.
        FileExistsError: the name that was given is there.
    """
    if name is not None:
        _check_name(name)
        (root / name).mkdir()
        return root / name
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", config_name).strip("-._")[:60] or "run"
    count = 1
    while True:
        path = root / (f"{stem}-{now}" if count == 1 else f"{stem}-{now}-{count}")
        try:
            path.mkdir()
        except FileExistsError:
            count += 1
        else:
            return path


def _write_config(path: Path, config: dict[str, Any]) -> None:
    plain = as_json(_tuples_as_lists(config), "the config")
    write_atomically(path / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
    write_atomically(path / "config.json", json.dumps(plain, indent=2) + "\n")


def _tuples_as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples_as_lists(item) for key, item in value.items()}
    return [_tuples_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _write_environment(path: Path) -> None:
    """Write environment.json, and environment-2.json, ... for each resumption."""
    count = 1 + len(list(path.glob("environment*.json")))
    file = path / ("environment.json" if count == 1 else f"environment-{count}.json")
    write_atomically(file, json.dumps(describe_environment(), indent=2) + "\n")


def _point_latest(path: Path) -> None:
    link = path.parent / LATEST_NAME
    if os.path.lexists(link) and not link.is_symlink():
        raise CheckpointError(
            f"{link} is in the way: it should be a link to the latest run; rename it"
        )
    point_symlink(link, path.name)


@contextmanager
def _readable_errors(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, FileError) as error:
        raise CheckpointError(
            f"{what} {path}: {error}; check that the folder exists, is writable and has room"
        ) from error
