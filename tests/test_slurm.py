"""What a task of srun becomes: rank, world and meeting place, or nothing at all."""

import pytest

from configs.errors import ConfigError
from safe.slurm import first_host, join_step

TASK = {
    "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "gpu[01-04]",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}  # fmt: skip
SET = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def test_a_task_gets_what_torchrun_would_set() -> None:
    environment = dict(TASK)
    join_step(environment)
    assert {name: environment[name] for name in SET} == {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03",
        "MASTER_PORT": str(15_000 + 7 * 4711 % 15_000),
    }  # fmt: skip
    other, later = {**TASK, "SLURM_PROCID": "0"}, {**TASK, "SLURM_STEP_ID": "1"}
    join_step(other)
    join_step(later)
    assert other["MASTER_PORT"] == environment["MASTER_PORT"] != later["MASTER_PORT"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"},  # sbatch's own script
        {**TASK, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        {**TASK, "SLURM_NTASKS": "4"},  # sbatch from inside of a step
        {**TASK, "RANK": "0", "WORLD_SIZE": "2"},  # torchrun, started by srun
    ],
    ids=["nothing", "batch script", "one task", "left over", "torchrun"],
)
def test_everybody_else_stays_as_he_is(environment: dict[str, str]) -> None:
    after = dict(environment)
    join_step(after)
    assert after == environment


def test_a_meeting_place_that_is_set_stays() -> None:
    environment = {**TASK, "MASTER_ADDR": "ib3", "MASTER_PORT": "29500"}
    join_step(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("ib3", "29500")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("node7", "node7"), ("node7,node9", "node7"), ("node[003-004,7],gpu1", "node003"),
     ("n[5]", "n5"), ("a-b[10,12]-ib.hpc.org", "a-b10-ib.hpc.org"), ("x.hpc.org,y", "x.hpc.org")],
)  # fmt: skip
def test_first_host_of_a_list_of_nodes(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("change", "message"),
    [({"SLURM_PROCID": "8"}, "SLURM_PROCID=8 is no task of SLURM_NTASKS=8"),
     ({"SLURM_PROCID": ""}, "SLURM_PROCID='' is no number"),
     ({"SLURM_JOB_NODELIST": "", "SLURM_STEP_NODELIST": ""}, "list of nodes is ''")],
)  # fmt: skip
def test_what_contradicts_itself_is_an_error(change: dict[str, str], message: str) -> None:
    environment = TASK | change
    with pytest.raises(ConfigError, match=message):
        join_step(environment)
    assert "RANK" not in environment
