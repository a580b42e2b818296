"""--slurm: what is written for sbatch, what is refused, and a real job on this machine."""

import datetime
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from safe import slurm_launcher
from safe.cli import main
from safe.slurm_launcher import Training, going_on, minutes, parsed, without_slurm

SBATCH = """#!/bin/sh
if [ -n "$REFUSE" ]; then echo "sbatch: error: $REFUSE" >&2; exit 1; fi
cp "$1" "$RECORD"
echo "Submitted batch job 4711"
"""
EMBEDDED = ["--backbone", "embedded", "--audio-encoder", "embedded", "--data", "synthetic"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a sbatch that only keeps its script keeps it in; a scontrol that says so."""
    (tmp_path / "bin").mkdir()
    scontrol = f'#!/bin/sh\necho "$*" > {tmp_path / "requeued"}\n'
    for name, text in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n"), ("scontrol", scontrol)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "batch.sh"))
    return tmp_path / "batch.sh"


def test_batch_script_of_two_nodes(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "partition=gpu,time=1-12:00:00,nodes=2,gpus_per_node=4,mem=200G,reservation=mine"
    where = ["--output", str(tmp_path / "runs"), "--name", "big"]
    assert main(["phase1", "--slurm", options, *where, *EMBEDDED]) == 0
    lines = cluster.read_text().splitlines()
    for option in ("partition=gpu", "time=2160", "nodes=2", "gpus-per-node=4", "ntasks-per-node=4",
                   "cpus-per-task=8", "mem=200G", "reservation=mine", "signal=USR2@300", "requeue",
                   "open-mode=append", "job-name=big"):  # fmt: skip
        assert f"#SBATCH --{option}" in lines, option
    (command,) = [line for line in lines if line.startswith("srun ")]
    folder = tmp_path / "runs" / "jobs" / "big"
    assert sys.executable in command and command.endswith(f"submitit.core._submit {folder}")
    text = capsys.readouterr().out
    assert f"submitted job 4711 for {tmp_path / 'runs' / 'big'}" in text
    assert f"safe-probe watch {tmp_path / 'runs' / 'big'}" in text
    assert not (tmp_path / "runs" / "big").exists()  # the job makes it


@pytest.mark.parametrize(
    ("options", "message"),
    [("partition", "'partition' is not key=value"), ("partiton=gpu", "did you mean 'partition'"),
     ("nodes=two", "nodes must be a whole number"), ("nodes=0", "nodes must be a whole number"),
     ("time=soon", "time=soon is no time limit"), ("mem=1G,mem=2G", "mem is given twice")],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:30", 91), ("24:00:00", 1440), ("1-12", 2160), ("1-12:30", 2190),
     ("2-00:00:01", 2881)],
)  # fmt: skip
def test_time_limits_as_sbatch_reads_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


def test_mistakes_are_found_before_anything_is_queued(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    slurm = ["--slurm", "partition=gpu", "--output", str(tmp_path)]
    assert main(["phase1", *slurm, "--set", "optim.epoch=3"]) == 2
    assert main(["phase1", *slurm, "--name", "no/name"]) == 2
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["phase1", *slurm, *EMBEDDED]) == 2
    assert "pip install 'safe-probe[slurm]'" in capsys.readouterr().err
    assert not cluster.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--data", "/nowhere"], "DataError: the data folder /nowhere does not exist"),
     (["--backbone", "/nowhere"], "ModelError: /nowhere: no such model folder"),
     (["--backbone", "smollm2"], "smollm2 is not on this machine; get it with"),
     (["--audio-encoder", "laion-clap:/none.pt"], "ModelError: no checkpoint /none.pt"),
     (["--audio-encoder", "laion-clap"], "audio encoder laion-clap needs a checkpoint"),
     (["--audio-encoder", "hf:/nowhere"], "ModelError: /nowhere: no such model folder"),
     (["--audio-encoder", "aisfy"], "unknown audio encoder 'aisfy'; did you mean 'aisfx'?"),
     (["--track", "wandb"], "--track wandb: the package is not installed")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_the_job_would_not_find_is_refused(
    words: list[str], message: str, cluster: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SAFE_PROBE_CACHE", str(tmp_path / "cache"))  # nothing was fetched
    monkeypatch.setattr("safe.training.launch.is_wandb_available", lambda: False)
    submit = ["demo", "--slurm", "partition=gpu", "--output", str(tmp_path / "runs")]
    assert main([*submit, *words]) == 2
    assert message in capsys.readouterr().err
    assert not cluster.exists() and not (tmp_path / "runs").exists()


def test_a_job_on_real_data_is_queued(cluster: Path, tmp_path: Path, tiny_data: Path) -> None:
    """And a hub name is no mistake: the job downloads what is not here."""
    real = ["--data", str(tiny_data), "--backbone", "some/model", "--audio-encoder", "hf:some/clap"]
    submit = ["phase1", "--slurm", "partition=gpu", "--output", str(tmp_path / "runs")]
    assert main([*submit, *real]) == 0
    assert cluster.exists()


def test_a_job_does_not_train_stand_ins(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("safe.available.weights_available", lambda name: name == "embedded")
    monkeypatch.chdir(tmp_path)
    message = (
        "ConfigError: missing here: --backbone llava-hf/llava-1.5-13b-hf, --audio-encoder "
        "laion-clap, --data experiments/full_training/data/audiocaps; a SLURM job does not train "
        "with embedded pieces in their place; name others by these options, or ask for the "
        "embedded ones: " + " ".join(EMBEDDED)
    )
    started: list[Any] = []
    monkeypatch.setattr("safe.training.run.start", lambda *_: started.append(1))
    assert main(["phase1", "--slurm", "partition=gpu"]) == 2
    out, err = capsys.readouterr()
    assert message in err and "note: backbone llava-hf/llava-1.5-13b-hf is not on this" in out
    assert not cluster.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "4711")  # scripts/*.sh end there, and so may a machine that
    assert main(["phase1"]) == 2  # lacks what the submitting one has
    assert message in capsys.readouterr().err and not started
    assert main(["phase1", *EMBEDDED]) == 0 and main(["demo"]) == 0  # asked for by name
    assert len(started) == 2
    monkeypatch.delenv("SLURM_JOB_ID")
    assert main(["phase1"]) == 0 and len(started) == 3


def test_a_name_is_given_to_one_job(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    submit = ["demo", "--slurm", "partition=gpu", "--output", str(runs), "--name", "same"]
    assert main([*submit, "--seed", "0"]) == 0
    cluster.unlink()
    assert main([*submit, "--seed", "1"]) == 2
    assert (
        f"run {runs / 'same'} was given to a job already, which writes into "
        f"{runs / 'jobs' / 'same'}; choose another name, or, when no such job is queued any more "
        f"(squeue --name same), delete {runs / 'jobs' / 'same'}" in capsys.readouterr().err
    )
    assert not cluster.exists() and any((runs / "jobs" / "same").iterdir())
    (runs / "same").mkdir()  # the job has begun
    assert main([*submit, "--seed", "1"]) == 2
    assert "exists already; go on with --resume" in capsys.readouterr().err


def test_jobs_without_a_name_get_one_each(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, _tz: Any = None) -> "Stopped":
            return cls(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr("safe.training.run_directory.datetime.datetime", Stopped)
    for seed, name in enumerate(("demo-20300102-030405", "demo-20300102-030405-2")):
        submit = ["demo", "--slurm", "partition=gpu", "--output", str(tmp_path)]
        assert main([*submit, "--seed", str(seed)]) == 0
        assert f"for {tmp_path / name};" in capsys.readouterr().out
        (pickle,) = (tmp_path / "jobs" / name).glob("*_submitted.pkl")
        (words, run), _ = _job(pickle)
        assert words[-4:] == ["--seed", str(seed), "--name", name] and run == str(tmp_path / name)


def _job(pickle: Path) -> tuple[tuple[list[str], str], Any]:
    """What a job is told, and the job itself."""
    from submitit.helpers import DelayedSubmission

    job = DelayedSubmission.load(pickle)
    return job.args, job


def test_a_job_that_sbatch_refuses_leaves_its_name_free(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    submit = ["demo", "--slurm", "partition=gpu", "--output", str(tmp_path), "--name", "same"]
    monkeypatch.setenv("REFUSE", "invalid partition specified: gpu")
    assert main(submit) == 2
    assert (
        "ConfigError: --slurm partition=gpu: the job was not queued: sbatch: error: invalid "
        "partition specified: gpu" in capsys.readouterr().err
    )
    monkeypatch.delenv("REFUSE")
    assert main(submit) == 0


def test_without_slurm_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["demo", "--slurm=partition=gpu", "--output", str(tmp_path)]) == 2
    assert "there is no SLURM here" in capsys.readouterr().err


def test_a_job_goes_on_with_its_run_and_is_queued_again(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("safe.cli.main", lambda words: calls.append(words) or 3)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    words = ["phase1", "--epochs", "3", "--name", "x", "--device", "cuda", "--shard"]
    assert Training()(words, str(tmp_path / "x")) == 3
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    (tmp_path / "requeued").unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_PROCID", "1")  # one task is enough to queue a job
    assert Training()(words, str(tmp_path / "x")) == 3
    assert not (tmp_path / "requeued").exists()
    go_on = ["phase1", "--resume", str(tmp_path / "x"), "--device", "cuda", "--shard"]
    assert calls == [words, go_on]
    monkeypatch.setattr("safe.cli.main", lambda _: 4)
    with pytest.raises(SystemExit, match="4"):
        Training()(words, str(tmp_path / "x"))


def test_a_job_does_not_go_on_with_the_run_of_another_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)  # the job starts for the first time
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    words = ["demo", "--seed", "1", "--output", str(tmp_path), "--name", "x"]
    with pytest.raises(SystemExit, match="2"):
        Training()(words, str(tmp_path / "x"))
    assert f"run {tmp_path / 'x'} exists already" in capsys.readouterr().err


def test_a_job_that_is_stopped_before_it_trains_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    words, run = ["demo", "--name", "x"], str(tmp_path / "x")
    Training().checkpoint(words, run).dump(tmp_path / "again.pkl")  # submitit does so on a signal
    told, job = _job(tmp_path / "again.pkl")
    assert told == (words, run)
    calls: list[list[str]] = []
    monkeypatch.setattr("safe.cli.main", lambda words: calls.append(words) or 0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert job.result() == 0 and calls == [words]


def test_what_is_kept_of_a_command() -> None:
    assert without_slurm(["a", "--slurm", "x=1", "--b", "--slurm=y=2", "c"]) == ["a", "--b", "c"]


def test_an_option_that_is_cut_short_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Else the job would find --slur in its own command, and queue itself again without end."""
    with pytest.raises(SystemExit):
        main(["demo", "--slur", "partition=gpu"])
    assert "unrecognized arguments: --slur" in capsys.readouterr().err
    words = ["full", "--track=wandb", "--set", "a=b", "--probe-every", "5"]
    assert going_on(words, "r") == ["full", "--resume", "r", "--track=wandb", "--probe-every", "5"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_small_world")
def test_a_real_job_on_this_machine(
    tiny_data: Path, tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(repo_root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jobs: list[Any] = []
    queue = submitit.LocalExecutor.submit
    monkeypatch.setattr(
        submitit.LocalExecutor, "submit",
        lambda *arguments: jobs.append(queue(*arguments)) or jobs[-1],
    )  # fmt: skip
    words = ["demo", "--data", str(tiny_data), "--device", "cpu", "--effective-batch", "8",
             "--set", "optim.max_steps=1", "--set", "evaluation.max_new_tokens=4",
             "--set", "evaluation.bootstrap=20", "--probe-every", "0", "--output",
             str(tmp_path), "--name", "job"]  # fmt: skip
    slurm_launcher.submit(words, tmp_path / "job", "partition=gpu", local=True)
    assert jobs[0].result() in (0, 1), jobs[0].stderr()
    assert (tmp_path / "job" / "evaluation.json").exists()
    assert "everything is in" in jobs[0].stdout()
