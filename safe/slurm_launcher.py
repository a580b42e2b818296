"""`safe-train phase1 --slurm partition=gpu,time=24:00:00`: the same command as a SLURM job.

submitit writes the batch script, one task per GPU, and srun starts them (see `safe.slurm`). A job
that is preempted or runs into its time limit saves, is queued again and goes on with --resume.
"""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import ConfigError, unknown
from safe.training.run_directory import check_new_run, make_folder

if TYPE_CHECKING:
    import submitit

OPTIONS = (
    "partition", "time", "nodes", "gpus_per_node", "cpus_per_task", "mem", "account", "qos",
    "constraint", "exclude", "reservation",
)  # fmt: skip
"""What --slurm takes, by sbatch's names."""
_COUNTS = ("nodes", "gpus_per_node", "cpus_per_task")
_DEFAULTS = {"nodes": 1, "gpus_per_node": 1, "cpus_per_task": 8, "time": 24 * 60}
_FURTHER = ("reservation",)
"""What submitit passes on to sbatch without knowing it."""
_WARNING_SECONDS = 300
"""How long before the limit SLURM sends its signal; a save takes seconds."""
_JOBS = "jobs"
"""The folder beside the runs that has a folder per run which was queued."""


@contextmanager
def claimed(output: Path, name: str | None, config_name: str) -> Iterator[Path]:
    """Give a new run's name to one job, by its folder; free again when the job is not queued.

    The job makes the run's folder when it starts, perhaps days later; until then, nothing else
    says that the name is taken.

    Args:
        output: folder of runs.
        name: of the run; by default the config's name with date and time, always a new one.
        config_name: the config's name.

    Yields:
        Folder of the run, not made.

    Raises:
        ConfigError: the name is not usable, or has a run or a job already.
    """
    check_new_run(output, name)
    jobs = output / _JOBS
    jobs.mkdir(parents=True, exist_ok=True)
    try:
        folder = make_folder(jobs, name, config_name)
    except FileExistsError:
        raise ConfigError(
            f"run {output / str(name)} was given to a job already, which writes into "
            f"{jobs / str(name)}; choose another name, or, when no such job is queued any more "
            f"(squeue --name {name}), delete {jobs / str(name)}"
        ) from None
    try:
        check_new_run(output, folder.name)  # a name with the time may be a run's, too
        yield output / folder.name
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # made a moment ago, so nothing is lost
        raise


def submit(words: Sequence[str], run: Path, options: str, *, local: bool = False) -> str:
    """Queue a training; returns what to print.

    Args:
        words: the words after `safe-train`, without --slurm, with --output and --name of ``run``
            or with --resume.
        run: folder of the run, made by the job.
        options: "key=value,...", see OPTIONS.
        local: run it on this machine in a process of its own instead.

    Raises:
        ConfigError: submitit or sbatch is not there, an option is unknown or no number, or sbatch
            refuses the job.
    """
    settings = parsed(options)
    try:
        import submitit
    except ModuleNotFoundError:
        raise ConfigError(
            "--slurm needs submitit, which is not installed: pip install 'safe-probe[slurm]'; or "
            "use sbatch scripts/phase1_training.sh"
        ) from None
    folder = (run.parent / _JOBS / run.name).resolve()
    executor: submitit.Executor
    if local:
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=60)
    else:
        executor = _slurm_executor(folder, run.name, settings)
    try:
        job = executor.submit(Training(), list(words), str(run.resolve()))
    except RuntimeError as error:  # submitit's, with what sbatch said
        said = " ".join(str(error).split())
        raise ConfigError(f"--slurm {options}: the job was not queued: {said}") from None
    return f"submitted job {job.job_id} for {run}; it writes into {folder}"


def parsed(options: str) -> dict[str, Any]:
    """The settings of a job.

    Raises:
        ConfigError: an option is unknown, twice there, or no number where one must be.
    """
    given: dict[str, Any] = {}
    for part in options.split(","):
        key, equals, value = part.partition("=")
        if not (equals and value):
            raise ConfigError(
                f"--slurm {options}: {part!r} is not key=value, as in partition=gpu,time=24:00:00"
            )
        if key not in OPTIONS:
            raise ConfigError(unknown("option of --slurm", key, OPTIONS))
        if key in given:
            raise ConfigError(f"--slurm {options}: {key} is given twice")
        if key in _COUNTS and not (value.isdecimal() and int(value) > 0):
            raise ConfigError(f"--slurm {options}: {key} must be a whole number from 1 on")
        given[key] = int(value) if key in _COUNTS else value
    if "time" in given:
        given["time"] = minutes(given["time"])
    return _DEFAULTS | given


def minutes(text: str) -> int:
    """Minutes of a time limit as sbatch writes it, rounded up.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+)-(?=\d+(?::\d+){0,2}$))?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ConfigError(
            f"--slurm: time={text} is no time limit; allowed: minutes, MM:SS, HH:MM:SS, D-HH, "
            "D-HH:MM or D-HH:MM:SS"
        )
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, mins, secs = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, mins, secs = numbers
    else:
        hours, (mins, secs) = 0, [*numbers, 0][:2]
    return max(1, math.ceil((int(days or 0) * 24 + hours) * 60 + mins + secs / 60))


def without_slurm(words: Sequence[str]) -> list[str]:
    """The words of a command but for --slurm and its value."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--slurm"):
            kept.append(word)
        skip = word == "--slurm"
    return kept


@dataclass
class Training:
    """What a job does; it is written to the job's folder, and made anew when it is queued again."""

    def __call__(self, words: list[str], run: str) -> int:
        """Train, or go on; a run that was stopped is queued again. The exit code of safe-train.

        Only a job that was queued again goes on with a run that is there: it is its own. What
        another command has made under this name meanwhile is an error of `safe-train`.
        """
        from safe.cli import main

        again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        if again and (Path(run) / "config.json").exists() and "--resume" not in words:
            words = going_on(words, run)
        code = main(words)
        if code == 3 and os.environ.get("SLURM_PROCID", "0") == "0":
            requeue()
        if code in (2, 4):
            raise SystemExit(code)  # the job has failed, and SLURM shall say so
        return code

    def checkpoint(self, words: list[str], run: str) -> "submitit.helpers.DelayedSubmission":
        """Asked for by submitit when the signal comes before the training listens to it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, words, run)


def going_on(words: Sequence[str], run: str) -> list[str]:
    """The command that goes on with ``run``: what it is was decided when it began."""
    kept: list[str] = [words[0], "--resume", run]
    for place, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if name == "--shard":
            kept.append(word)
        elif name in ("--device", "--track", "--probe-every"):
            kept += [word] if equals else words[place : place + 2]
    return kept


def requeue() -> None:
    """Queue this job again, where there is SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None:
        print(f"stopped; queueing job {job} again", flush=True)
        subprocess.run(["scontrol", "requeue", job], check=True)


def _slurm_executor(folder: Path, name: str, settings: dict[str, Any]) -> "submitit.Executor":
    import submitit

    known = {key: value for key, value in settings.items() if key not in _FURTHER}
    further = {key: value for key, value in settings.items() if key in _FURTHER}
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=1000)
    except RuntimeError as error:
        raise ConfigError(
            f"--slurm: there is no SLURM here ({error}); log in to the cluster, or leave it out"
        ) from None
    executor.update_parameters(
        job_name=name,
        ntasks_per_node=settings["gpus_per_node"],
        signal_delay_s=_WARNING_SECONDS,
        additional_parameters={"requeue": True, **further},
        **known,
    )
    return executor
