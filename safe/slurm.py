"""What SLURM and launchers tell a process by its environment, before torch is there.

What plain `srun` tells its tasks is put in the words of torchrun, which torch and accelerate read.
"""

import os
import re
from collections.abc import MutableMapping

from configs.errors import ConfigError

_FIRST_PORT, _PORTS = 15_000, 15_000
"""Below Linux's ephemeral ports, which begin at 32,768."""


def join_step(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for a task of srun.

    Only for a step of two tasks or more that srun has started, and only when no launcher has set
    them: the batch script of a job with many tasks stays one process. An address and a port that
    are set already stay.

    Raises:
        ConfigError: srun's variables contradict each other.
    """
    if "RANK" in environment or not _is_task_of_many(environment):
        return
    tasks, rank = _number(environment, "SLURM_NTASKS"), _number(environment, "SLURM_PROCID")
    if rank >= tasks:
        raise ConfigError(f"SLURM_PROCID={rank} is no task of SLURM_NTASKS={tasks}; unset both")
    # nodes of the step, which may be fewer than those of the job
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    job, step = (_number(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    # every task finds the same one, and two steps at a time seldom share it
    environment.setdefault("MASTER_PORT", str(_FIRST_PORT + (7 * job + step) % _PORTS))
    environment["LOCAL_RANK"] = str(_number(environment, "SLURM_LOCALID"))
    environment["WORLD_SIZE"] = str(tasks)
    environment["RANK"] = str(rank)


def is_first() -> bool:
    """Whether this is process 0 of a run, the one that talks, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def in_job() -> bool:
    """Whether this process belongs to a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def first_host(nodes: str) -> str:
    """The first host of SLURM's short form: "node[003-004,7],gpu1" begins with node003.

    Raises:
        ConfigError: there is none.
    """
    match = re.match(r"([^\[,\s]+)(?:\[(\w+)[^\]]*\]([^,\s]*))?", nodes)
    if match is None:
        raise ConfigError(
            f"SLURM's list of nodes is {nodes!r}, which names none; set MASTER_ADDR to the host "
            "of task 0, or start with torchrun"
        )
    return "".join(part or "" for part in match.groups())


def _is_task_of_many(environment: MutableMapping[str, str]) -> bool:
    """Whether srun started this process with others; sbatch's own script has no step's variables.

    Both counts must agree: what is left over from an outer step belongs to nobody here.
    """
    tasks = environment.get("SLURM_NTASKS", "1")
    return tasks != "1" and tasks == environment.get("SLURM_STEP_NUM_TASKS")


def _number(environment: MutableMapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise ConfigError(
            f"{name}={text!r} is no number, though srun says that this is one of "
            f"{environment['SLURM_NTASKS']} tasks; start with torchrun instead"
        )
    return int(text)
