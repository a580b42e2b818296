"""The training scripts: what they pass on, what they print first, how they stop and go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

VARIABLES = ("MODEL_CONFIG", "LR_PROJECTOR", "LR_ADAPTER", "NUM_EPOCHS", "TRAIN_BS",
             "GRADIENT_ACCUMULATION_STEPS", "DATA_ROOT", "OUTPUT_ROOT", "SLURM_JOB_ID",
             "SLURM_SUBMIT_DIR", "SLURM_NTASKS", "SLURM_ARRAY_TASK_ID")  # fmt: skip
SCRIPTS = {"phase1": "phase1_training.sh", "full": "full_training.sh"}

FAKE = """#!/bin/bash
printf '<%s>\\n' "$@" > "$RECORD"
trap 'echo "got TERM"; exit 3' TERM
trap 'echo "got USR1"; exit 3' USR1
if [[ -n ${HANG:-} ]]; then echo ready; for _ in {1..600}; do sleep 0.1; done; fi
exit "${CODE:-0}"
"""
SCONTROL = '#!/bin/sh\necho "scontrol $*"\n'
SRUN = '#!/bin/sh\necho "srun of $SLURM_NTASKS tasks"\nexec "$@"\n'
SBATCH = """#!/bin/bash
# as SLURM does it: a copy of the script, once per number of the array
copy=$(mktemp) && cp "$2" "$copy"
range=${1#--array=}
for number in $(seq "${range%-*}" "${range#*-}"); do
    SLURM_JOB_ID=$((100 + number)) SLURM_ARRAY_TASK_ID=$number RECORD=$RECORD-$number \\
        SLURM_SUBMIT_DIR=$PWD bash "$copy"
done
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose safe-train and scontrol only write down how they were called."""
    for name, text in (("safe-train", FAKE), ("scontrol", SCONTROL), ("srun", SRUN),
                       ("sbatch", SBATCH)):  # fmt: skip
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    return kept | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "RECORD": str(tmp_path / "arguments"),
    }


def call(
    repo_root: Path, config: str, cwd: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(repo_root / "scripts" / SCRIPTS[config]), *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip


def passed(environment: dict[str, str]) -> list[str]:
    lines = Path(environment["RECORD"]).read_text().splitlines()
    return [line[1:-1] for line in lines]


@pytest.mark.parametrize("config", SCRIPTS)
def test_script_is_executable_and_tells_slurm_what_it_needs(config: str, repo_root: Path) -> None:
    path = repo_root / "scripts" / SCRIPTS[config]
    assert os.access(path, os.X_OK)
    header = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    for option in (f"--job-name=safe-{config}", "--gpus=1", "--time=", "--signal=B:USR1@300",
                   "--requeue", f"--output=logs/{config}_%j.txt"):  # fmt: skip
        assert any(line.startswith(f"#SBATCH {option}") for line in header), option
    for name in (SCRIPTS[config], "_train.sh"):
        subprocess.run(["bash", "-n", str(repo_root / "scripts" / name)], check=True)


@pytest.mark.parametrize("config", SCRIPTS)
def test_plan_and_success_criteria_come_first(
    config: str, repo_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = call(repo_root, config, tmp_path, environment | {"CODE": "1"})
    assert done.returncode == 1  # safe-train's own exit code: blocked
    for part in (f"configuration  {config}", "> 30    connectivity VERIFIED",
                 "25-30   PARTIAL success", "< 25    still BLOCKED",
                 "another clip's audio"):  # fmt: skip
        assert part in done.stdout
    first, *rest = passed(environment)
    assert first == config and rest[:3] == ["--output", "runs", "--name"] and len(rest) == 4
    assert rest[3].startswith(f"{config}-") and rest[3] in done.stdout


def test_variables_that_are_set_and_further_arguments_are_passed_on(
    repo_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    values = {
        "MODEL_CONFIG": "phase2", "LR_PROJECTOR": "2e-4", "LR_ADAPTER": "1e-4", "NUM_EPOCHS": "7",
        "TRAIN_BS": "2", "GRADIENT_ACCUMULATION_STEPS": "64", "DATA_ROOT": "my data",
        "OUTPUT_ROOT": "my runs",
    }  # fmt: skip
    done = call(repo_root, "phase1", tmp_path, environment | values,
                "--backbone", "a folder", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    arguments = passed(environment)
    assert arguments[:3] == ["phase2", "--output", "my runs"]
    assert arguments[5:] == [
        "--set", "optim.lr_projector=2e-4", "--set", "optim.lr_adapter=1e-4",
        "--set", "optim.batch_size=2", "--set", "optim.accumulation=64",
        "--epochs", "7", "--data", "my data", "--backbone", "a folder", "--device", "cpu",
    ]  # fmt: skip


def test_same_call_goes_on_and_another_one_begins_anew(
    repo_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    call(repo_root, "phase1", tmp_path, environment, "--device", "cpu")
    name = passed(environment)[4]
    (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / name / "config.json").write_text("{}")
    done = call(repo_root, "phase1", tmp_path, environment, "--device", "cpu")
    assert passed(environment) == ["phase1", "--resume", f"runs/{name}", "--device", "cpu"]
    assert f"runs/{name} exists: going on with it" in done.stdout
    call(repo_root, "phase1", tmp_path, environment | {"LR_PROJECTOR": "1e-4"})
    assert passed(environment)[1] == "--output" and passed(environment)[4] != name
    call(repo_root, "phase1", tmp_path, environment, "--name", "mine", "--output", "there")
    assert passed(environment) == ["phase1", "--output", "there", "--name", "mine"]
    call(repo_root, "phase1", tmp_path, environment, "--resume", f"runs/{name}")
    assert passed(environment) == ["phase1", "--resume", f"runs/{name}"]


@pytest.mark.parametrize("slurm", [False, True])
@pytest.mark.parametrize("name", ["TERM", "USR1", "INT"])
def test_signal_reaches_the_training_and_the_script_waits_for_it(
    name: str, slurm: bool, repo_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    job = {"SLURM_JOB_ID": "4711"} if slurm else {}
    with subprocess.Popen(
        ["bash", str(repo_root / "scripts" / SCRIPTS["full"])], cwd=tmp_path, text=True,
        env=environment | job | {"HANG": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while "ready" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(getattr(signal, f"SIG{name}"))
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 3, text
    assert f"got {'TERM' if name == 'INT' else name}" in text
    if slurm:
        assert "scontrol requeue 4711" in text
    else:
        assert "stopped; the same call goes on with runs/full-" in text


def test_a_job_array_trains_a_seed_per_task(
    repo_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    submit = ["sbatch", "--array=0-2", f"scripts/{SCRIPTS['phase1']}"]
    environment |= {"NUM_EPOCHS": "2", "OUTPUT_ROOT": str(tmp_path / "runs")}
    done = subprocess.run(
        submit, cwd=repo_root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = set()
    for seed in "012":
        arguments = passed(environment | {"RECORD": f"{environment['RECORD']}-{seed}"})
        assert arguments[-4:] == ["--epochs", "2", "--seed", seed]
        name = arguments[arguments.index("--name") + 1]
        assert name.endswith(f"-seed{seed}")
        names.add(name.removesuffix(seed))
    assert len(names) == 1  # the settings are the same, and so is their digest
    assert f"safe-probe compare {tmp_path / 'runs' / names.pop()}*" in done.stdout


def test_a_task_of_an_array_goes_on_with_its_own_run_and_is_queued_again(
    repo_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    task = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "4712"}
    (tmp_path / "runs" / "mine-seed1").mkdir(parents=True)
    (tmp_path / "runs" / "mine-seed1" / "config.json").write_text("{}")
    done = call(repo_root, "phase1", tmp_path, environment | task | {"CODE": "3"},
                "--name", "mine")  # fmt: skip
    assert passed(environment) == ["phase1", "--resume", "runs/mine-seed1"]
    assert done.returncode == 3 and "scontrol requeue 4712" in done.stdout
    assert "safe-probe compare" not in done.stdout
    done = call(repo_root, "phase1", tmp_path, environment | task, "--resume", "runs/mine-seed1")
    assert done.returncode == 2 and "would all go on with one run" in done.stderr


def test_a_job_of_several_tasks_starts_one_process_each(
    repo_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = call(repo_root, "phase1", tmp_path, environment | {"SLURM_NTASKS": "4", "CODE": "4"})
    assert "srun of 4 tasks" in done.stdout and passed(environment)[0] == "phase1"
    assert done.returncode == 4 and "a process was lost; the same call goes on" in done.stdout
    done = call(repo_root, "phase1", tmp_path, environment | {"SLURM_NTASKS": "1"})
    assert "srun" not in done.stdout


def test_sbatch_runs_a_copy_of_the_script(
    repo_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    copy = tmp_path / "slurm_script"
    copy.write_text((repo_root / "scripts" / SCRIPTS["phase1"]).read_text())
    done = subprocess.run(
        ["bash", str(copy)], env=environment | {"SLURM_SUBMIT_DIR": str(repo_root)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert passed(environment)[0] == "phase1"


def test_missing_program_is_named(
    repo_root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    scripts = tmp_path / "elsewhere" / "scripts"
    scripts.mkdir(parents=True)
    for name in (SCRIPTS["phase1"], "_train.sh"):
        (scripts / name).write_text((repo_root / "scripts" / name).read_text())
    for tool in ("bash", "dirname", "cat", "cut", "cksum"):
        target = subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout
        (tmp_path / "tools").mkdir(exist_ok=True)
        (tmp_path / "tools" / tool).symlink_to(target.strip())
    done = subprocess.run(
        ["bash", str(scripts / SCRIPTS["phase1"])], cwd=tmp_path, capture_output=True, text=True,
        env=environment | {"PATH": str(tmp_path / "tools")}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "safe-train is not installed: run 'make demo' in the repository once" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("in_small_world")
def test_real_run_stops_on_a_signal_and_the_same_call_finishes_it(
    repo_root: Path, tmp_path: Path, tiny_data: Path
) -> None:
    program = Path(sys.executable).parent
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | {
        "PATH": f"{os.environ['PATH'].split(os.pathsep)[0]}{os.pathsep}{program}{os.pathsep}"
        f"{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1", "DATA_ROOT": str(tiny_data), "NUM_EPOCHS": "1000", "TRAIN_BS": "4",
        "GRADIENT_ACCUMULATION_STEPS": "1", "OUTPUT_ROOT": str(tmp_path / "runs"),
    }  # fmt: skip
    command = [
        "bash", str(repo_root / "scripts" / SCRIPTS["phase1"]), "--backbone", "embedded",
        "--audio-encoder", "embedded", "--device", "cpu", "--set", "evaluation.every_epochs=1000",
        "--set", "evaluation.max_new_tokens=4", "--set", "evaluation.bootstrap=20",
        "--set", "model.projector.num_tokens=4", "--set", "optim.precision=no",
        "--set", "model.dtype=float32", "--name", "stopped",
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        metrics = tmp_path / "runs" / "stopped" / "metrics.jsonl"
        until = time.monotonic() + 400
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        text, _ = process.communicate(timeout=200)
    assert process.returncode == 3, text
    assert "SIGUSR1 received: saved at step" in text and "go on with: safe-train phase1" in text
    # a shorter run in its place: the configuration of a run is decided when it begins
    steps = int(text.split("saved at step ")[1].split()[0])
    config = tmp_path / "runs" / "stopped" / "config.json"
    config.write_text(config.read_text().replace('"max_steps": null', f'"max_steps": {steps + 1}'))
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert f"resumed at step {steps} of {steps + 1}" in done.stdout
    assert (tmp_path / "runs" / "stopped" / "evaluation.json").exists()
