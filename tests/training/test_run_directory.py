"""The run folder: what it holds, who owns it, and metrics that a resumed run writes on exactly."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import CheckpointError, ConfigError
from safe.training import environment, metrics_log, run_lock
from safe.training.durable import write_atomically
from safe.training.environment import describe_code, describe_environment, describe_git
from safe.training.run_directory import RunDirectory, read_config

CONFIG = {"name": "phase1", "layers": (8, 16), "optim": {"lr": 1e-3, "max_steps": None}}
PLAIN = {**CONFIG, "layers": [8, 16]}


def make(root: Path, name: str | None = "a") -> RunDirectory:
    return RunDirectory.create(root / "runs", name, CONFIG)


def start(root: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start another Python that finds this code wherever it is installed."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


# what it holds


def test_a_new_run_holds_config_environment_and_folders(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        assert run.path == tmp_path / "runs" / "a" and run.name == "a"
        assert run.config == PLAIN == json.loads((run.path / "config.json").read_text())
        assert yaml.safe_load((run.path / "config.yaml").read_text()) == PLAIN
        assert json.loads((run.path / "environment.json").read_text())["packages"]["torch"]
        assert run.checkpoints.is_dir() and run.captions.is_dir() and not run.adapter.exists()
        run.log("first line")
        run.log("bad \ud800 text")
        assert run.log_path.read_text().splitlines()[0].endswith("Z first line")
    assert not list(run.path.glob(".tmp*"))


def test_default_names_are_new_ones(tmp_path: Path) -> None:
    names = set()
    for _ in range(4):
        with make(tmp_path, None) as run:
            names.add(run.name)
            assert run.name.startswith("phase1-20")
    assert len(names) == 4
    with RunDirectory.create(tmp_path, None, {"name": "../../x y"}) as run:
        assert run.path.parent == tmp_path and run.name.startswith("x-y-")


@pytest.mark.parametrize("name", ["", "..", "a/b", "latest", ".x", "a b", "x" * 101, "a\n"])
def test_unusable_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="run name"):
        make(tmp_path, name)


def test_an_existing_name_is_refused(tmp_path: Path) -> None:
    make(tmp_path).close()
    with pytest.raises(ConfigError, match=r"runs/a exists already; go on with --resume"):
        make(tmp_path)


def test_a_failed_creation_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the config cannot be written as JSON"):
        RunDirectory.create(tmp_path, "a", {"x": object()})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot create a run folder in"):
        RunDirectory.create(tmp_path / "file", "a", CONFIG)


def test_open_goes_on_and_tells_the_second_environment(tmp_path: Path) -> None:
    make(tmp_path).close()
    before = (tmp_path / "runs" / "a" / "environment.json").read_bytes()
    with RunDirectory.open(tmp_path / "runs" / "latest") as run:
        assert run.path == tmp_path / "runs" / "a" and run.config == PLAIN
        assert (run.path / "environment.json").read_bytes() == before
        assert (run.path / "environment-2.json").exists()


@pytest.mark.parametrize("content", [None, "", "[]", "\x00", "[" * 3000])
def test_what_is_no_run_folder(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    for read in (read_config, RunDirectory.open):
        with pytest.raises(CheckpointError, match=r"is no run|no JSON object"):
            read(tmp_path)
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.timeout(60)  # a pipe that is opened waits for ever
def test_pipes_in_a_run_folder_are_refused(tmp_path: Path) -> None:
    make(tmp_path).close()
    path = tmp_path / "runs" / "a"
    for name in ("metrics.jsonl", "log.txt", "config.json"):
        content = (path / name).read_bytes() if (path / name).exists() else b""
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)
        with pytest.raises(CheckpointError, match=f"{name} cannot be read: it is not a regular"):
            RunDirectory.open(path)
        (path / name).unlink()
        (path / name).write_bytes(content)
    RunDirectory.open(path).close()


@pytest.mark.parametrize("name", [
    "run.lock", "metrics.jsonl", "log.txt", "probes.jsonl", "captions", "checkpoints",
])  # fmt: skip
@pytest.mark.parametrize("dangling", [False, True])
def test_links_in_a_run_folder_are_refused(tmp_path: Path, name: str, dangling: bool) -> None:
    """What would be written through them may be anybody's file."""
    make(tmp_path).close()
    path, mine = tmp_path / "runs" / "a", tmp_path / "mine"
    if (path / name).is_dir():
        (path / name).rmdir()
        mine.mkdir()
    else:
        (path / name).unlink(missing_ok=True)
        mine.write_text("not to be written")
    (path / name).symlink_to(tmp_path / "nowhere" if dangling else mine)
    with pytest.raises(CheckpointError, match=f"{name} is a link, to .*its own files and folders"):
        RunDirectory.open(path)
    assert not (tmp_path / "nowhere").exists()
    assert list(mine.iterdir()) == [] if mine.is_dir() else mine.read_text() == "not to be written"


def test_what_a_killed_process_was_writing_is_swept(tmp_path: Path) -> None:
    make(tmp_path).close()
    path = tmp_path / "runs" / "a"
    gone = subprocess.Popen(["true"])
    gone.wait()
    captions = path / "captions"
    left = [
        path / f".tmp-report.json-{gone.pid}",
        captions / f".tmp-x.jsonl-{gone.pid}",
        path / f".tmp-a-{os.getpid()}",
    ]  # of a dead one that had our number, as in a container
    kept = [path / f".tmp-report.json-{os.getppid()}", path / ".tmp-probes.jsonl"]
    for file in [*left, *kept]:
        file.touch()
    RunDirectory.open(path).close()
    assert [file.exists() for file in left] == [False, False, False]
    assert [file.exists() for file in kept] == [True, True]


# latest


def test_latest_is_a_relative_link_to_the_last_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path, name).close()
    link = tmp_path / "runs" / "latest"
    assert os.readlink(link) == "b"
    RunDirectory.open(tmp_path / "runs" / "a").close()
    assert os.readlink(link) == "a"


def test_latest_never_points_nowhere_while_it_changes(tmp_path: Path) -> None:
    make(tmp_path, "a").close()
    make(tmp_path, "b").close()
    link, stop, broken = tmp_path / "runs" / "latest", threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            if not (link / "config.json").exists():
                broken.append(os.path.lexists(link))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for index in range(20):
            RunDirectory.open(tmp_path / "runs" / "ab"[index % 2]).close()
    finally:
        stop.set()
        thread.join()
    assert broken == []


def test_a_folder_called_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="latest is in the way"):
        make(tmp_path)
    assert (tmp_path / "runs" / "latest").is_dir()
    make(tmp_path / "other").close()  # and the lock of the failed one is not held


# the lock


OPEN = textwrap.dedent("""
    import sys
    from safe.training.run_directory import RunDirectory
    run = RunDirectory.open(sys.argv[1])
    print("mine", flush=True)
    sys.stdin.read()
""")


def test_a_second_run_is_refused_with_the_owner(tmp_path: Path, repo_root: Path) -> None:
    with make(tmp_path) as run:
        with pytest.raises(CheckpointError, match=rf"in use by process {os.getpid()} on \w+"):
            RunDirectory.open(run.path)
        _, error = start(repo_root, OPEN, str(run.path)).communicate()
        assert f"in use by process {os.getpid()}" in error
        run.close()
        run.close()
        RunDirectory.open(run.path).close()


OWN_AND_FORK = textwrap.dedent("""
    import multiprocessing, sys, time
    from pathlib import Path
    from safe.training.run_directory import RunDirectory

    run = RunDirectory.open(Path(sys.argv[1]))
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(60)
""")


def test_a_killed_owner_is_recovered_though_its_worker_lives(
    tmp_path: Path, repo_root: Path
) -> None:
    make(tmp_path).close()
    path = tmp_path / "runs" / "a"
    with start(repo_root, OWN_AND_FORK, str(path)) as owner:
        assert owner.stdout is not None
        worker = int(owner.stdout.readline())
        try:
            with pytest.raises(CheckpointError, match=f"in use by process {owner.pid}"):
                RunDirectory.open(path)
            owner.kill()
            owner.wait()
            os.kill(worker, 0)  # the worker still lives
            RunDirectory.open(path).close()
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_lock_left_by_a_reused_process_number_is_recovered(tmp_path: Path) -> None:
    make(tmp_path).close()
    path = tmp_path / "runs" / "a"
    for content in (json.dumps({"pid": 1, "host": "h"}), "torn {", "", "[1]"):
        (path / "run.lock").write_text(content)  # process 1 lives, but holds nothing
        RunDirectory.open(path).close()


def test_without_locks_the_named_owner_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_path: Path) -> None:
        raise OSError("no locks here")

    make(tmp_path).close()
    path, host = tmp_path / "runs" / "a", run_lock.socket.gethostname()
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(run_lock, "try_lock", unsupported)
    for pid, where, free in (
        (1, host, False),
        (gone.pid, host, True),
        (gone.pid, "other", False),
        ("x", host, True),
    ):
        (path / "run.lock").write_text(json.dumps({"pid": pid, "host": where}))
        if free:
            RunDirectory.open(path).close()
        else:
            with pytest.raises(CheckpointError, match=f"in use by process {pid} on {where}"):
                RunDirectory.open(path)


def test_two_starting_at_once_have_one_winner(tmp_path: Path, repo_root: Path) -> None:
    make(tmp_path).close()
    both = [start(repo_root, OPEN, str(tmp_path / "runs" / "a")) for _ in range(2)]
    while all(process.poll() is None for process in both):
        time.sleep(0.05)
    told = [process.communicate() for process in both]
    assert sorted(out for out, _ in told) == ["", "mine\n"]
    assert sum("in use by process" in error for _, error in told) == 1


# metrics


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log_metrics({"step": 1, "loss": 2.5, "split": "train", "ids": ["a", "b"]})
        assert rows(run) == [{"step": 1, "loss": 2.5, "split": "train", "ids": ["a", "b"]}]
        run.sync_metrics()


def test_what_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log_metrics(
            {
                "step": 1,
                "loss": float("nan"),
                "norms": {"gate": [1.0, float("inf")]},
                "x": np.float32("-inf"),
                "y": torch.tensor(float("nan")),
            }
        )
    assert rows(run) == [
        {
            "step": 1,
            "loss": None,
            "norms": {"gate": [1.0, None]},
            "x": None,
            "y": None,
            "nonfinite": {"loss": "nan", "norms.gate.1": "inf", "x": "-inf", "y": "nan"},
        }
    ]


def test_numbers_of_numpy_and_torch_become_plain(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log_metrics(
            {
                "step": 1,
                "a": np.float64(0.1),
                "b": np.int64(3),
                "c": torch.tensor(2),
                "d": np.bool_(True),
                "e": (1, 2),
                "f": None,
            }
        )
    assert rows(run) == [{"step": 1, "a": 0.1, "b": 3, "c": 2, "d": True, "e": [1, 2], "f": None}]


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({}, "integer 'step', got None"),
        ({"step": 1.0}, "got 1.0"),
        ({"step": True}, "got True"),
        ({"step": 1, "x": object()}, "metric 'x' is a object"),
        ({"step": 1, "y": torch.ones(2)}, "metric 'y' is a Tensor"),
        ({"step": 1, "nonfinite": []}, "'nonfinite' is reserved"),
    ],
)
def test_rows_that_are_refused_write_nothing(
    tmp_path: Path, row: dict[str, Any], word: str
) -> None:
    with make(tmp_path) as run, pytest.raises(CheckpointError, match=word):
        run.log_metrics(row)
    assert rows(run) == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saved=st.integers(0, 8), killed=st.integers(0, 8), cut=st.integers(0, 60))
def test_an_interrupted_and_resumed_file_equals_the_uninterrupted(
    tmp_path: Path, saved: int, killed: int, cut: int
) -> None:
    steps = [{"step": step, "loss": 1 / (step + 1)} for step in range(9)]
    whole = b"".join(json.dumps(row).encode() + b"\n" for row in steps)
    path = tmp_path / "metrics.jsonl"
    torn = whole.splitlines(keepends=True)[killed][:cut]
    path.write_bytes(
        b"".join(whole.splitlines(keepends=True)[: max(saved + 1, killed)])
        + (torn if killed > saved else b"")
    )
    log = metrics_log.MetricsLog(path)
    log.truncate(saved)
    for row in steps[saved + 1 :]:
        log.append(row)
    log.close()
    assert path.read_bytes() == whole


def test_truncation_counts_and_keeps_bytes(tmp_path: Path) -> None:
    make(tmp_path).close()
    path = tmp_path / "runs" / "a"
    (path / "metrics.jsonl").write_bytes(b'{"step":1,  "x":1e0}\n{"step": 2}\n{"step": 1}\n{"st')
    with RunDirectory.open(path) as run:
        assert run.truncate_metrics(5) == 1
        assert run.truncate_metrics(1) == 1
        assert run.metrics_path.read_bytes() == b'{"step":1,  "x":1e0}\n{"step": 1}\n'
        assert run.truncate_metrics(-1) == 2 and rows(run) == []


@pytest.mark.parametrize(
    "line",
    [b"\x00\x00\n", b"{}\n", b"[1]\n", b'{"step": "x"}\n', b"\n", b'{"step": 1}\r{"step": 2}\n'],
)
def test_a_damaged_line_is_named_and_nothing_lost(tmp_path: Path, line: bytes) -> None:
    make(tmp_path).close()
    file = tmp_path / "runs" / "a" / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'{"step": 2}\n')
    with (
        RunDirectory.open(file.parent) as run,
        pytest.raises(CheckpointError, match="metrics.jsonl: line 2 is not a row of metrics"),
    ):
        run.truncate_metrics(1)
    assert file.read_bytes() == b'{"step": 1}\n' + line + b'{"step": 2}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log_path.symlink_to("/dev/full")
        with pytest.raises(CheckpointError, match=r"cannot write the log .*No space left"):
            run.log("x")


def test_half_a_row_is_taken_back(tmp_path: Path) -> None:
    class HalfFull:
        """A file whose disk has room for five more bytes."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[:5]))

        def fileno(self) -> int:
            return int(self.file.fileno())

    log = metrics_log.MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    real = log._file
    log._file = HalfFull(real)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        log.append({"step": 2})
    log._file = real
    log.append({"step": 3})
    log.close()
    assert log.path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_an_atomic_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomically(path, "old")

    def fail(_descriptor: int) -> None:
        raise OSError("disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# the environment


def test_the_environment_is_json_without_home_or_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/secretuser")
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    monkeypatch.setattr(sys, "argv", ["safe-train", "--data=/home/secretuser/x", "/home/secrets"])
    found = describe_environment()
    text = json.dumps(found)
    assert "secretuser" not in text and "hunter2" not in text
    assert run_lock.socket.gethostname() not in text
    assert found["command"] == ["safe-train", "--data=~/x", "/home/secrets"]
    assert set(found["packages"]) == set(environment.PACKAGES)
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["threads"] == torch.get_num_threads() and found["devices"]


def test_git_is_told_of_the_folder(tmp_path: Path) -> None:
    assert describe_git(tmp_path) is None
    assert describe_git(tmp_path / "absent") is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, text=True, capture_output=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    (tmp_path / "untracked").write_text("")
    assert describe_git(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("2")
    assert describe_git(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_the_code_is_told_of_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo_root: Path
) -> None:
    """A run started inside a stranger's repository, by a copy installed in it."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "a stranger's")
    monkeypatch.chdir(tmp_path)
    installed = tmp_path / ".venv" / "safe" / "environment.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    assert describe_git(installed.parent) is not None and describe_code(installed) is None
    git("add", ".")
    found = describe_code(installed)
    assert found is not None and found == {
        "of": "the folder of safe-probe's code",
        **(describe_git(tmp_path) or {}),
    }
    own = repo_root / "safe" / "training" / "environment.py"
    assert describe_environment()["git"] == describe_code(own)
    assert str(tmp_path) not in json.dumps(describe_environment()["git"])


def test_without_git_there_is_none(monkeypatch: pytest.MonkeyPatch, repo_root: Path) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_git(repo_root) is None
