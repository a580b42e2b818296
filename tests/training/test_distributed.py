"""Two processes encode, train and score what one does, stop together when one is told to, resume.

Run by a launcher as `test_distributed.py CONFIG_JSON OUTPUT whole|sharded` this file is one of the
processes.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from configs.overrides import dotted_fields
from configs.schema import RunConfig
from probes.record import RecordLog
from safe.data import cache
from safe.data.encoding import encode_batch
from safe.evaluation.saved import evaluate_saved
from safe.models.safe_model import SAFEModel
from safe.slurm import join_step
from safe.training.checkpoint import step_name
from safe.training.launch import Launch
from safe.training.run import Interrupted, resume, start
from safe.training.stage_a import StageA
from safe_probe.watch import ProbeWatch

LOSS_TOLERANCE = 1e-5
"""Relative; measured: 1.2e-7 (the sums of a step are taken in another order)."""
ADAPTER_TOLERANCE = 1e-4
"""Relative L2 distance of a tensor after three steps; measured: 5e-6 (AdamW divides by small
gradients, which magnifies the difference)."""
PROBE_TOLERANCE = 1e-2
"""Of a measured value, relative or of its unit; measured: 2.5e-3 for the slopes by finite
differences, 9e-6 for all others."""
FIRST_TOLERANCE = 1e-5
"""The same before the first step; measured: equal to the bit on one processor, 1.2e-6 on another,
whose kernels add in an order that depends on where memory lies."""
MAGNIFIES = ("slope_mismatch", "changed_logits")
"""Statistics that make a last bit larger: a difference of close numbers, divided by a small one;
a count of logits that differ at all."""


def probe_watch(*, shard: bool) -> ProbeWatch:
    """Probes on a little, after each step; all of them at both ends when every process measures."""
    ends = None if shard else ("magnitude", "gates", "influence", "gradflow")
    return ProbeWatch(1, ends=ends, clips=4)


def srun(command: list[str], environment: dict[str, str]) -> tuple[str, list[int]]:
    """What two tasks print, which are told what srun tells them; and their exit codes."""
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    step = {
        "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    tasks = [_task(command, environment | step, rank) for rank in "01"]
    text = "".join(task.communicate(timeout=550)[0] for task in tasks)
    return text, [task.returncode for task in tasks]


def _task(command: list[str], environment: dict[str, str], rank: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
    )  # fmt: skip


TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2", "--no-python")
ACCELERATE = ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
              "--no_python")  # fmt: skip


def launched(by: tuple[str, ...], command: list[str], environment: dict[str, str]) -> None:
    """Run two processes to their end, which must be 0."""
    launcher = [str(Path(sys.executable).with_name(by[0])), *by[1:]]
    done = subprocess.run(
        [*launcher, *command], env=environment, capture_output=True, text=True, timeout=550,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def worker(config: RunConfig, output: Path, *, shard: bool) -> None:
    """Train until process 1, and it alone, gets a signal after step 2; then resume to the end."""
    launch = Launch(Console(file=io.StringIO()), output, "two", device="cpu", shard=shard)
    take_step = StageA.take_step

    def with_signal(self: StageA, *args: Any) -> Any:
        step = take_step(self, *args)
        if self.position.step == 2 and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step

    def to(self: SAFEModel, *args: Any) -> Any:
        """A device that cannot hold the whole backbone must never be given the whole of it."""
        fused = self.fusion.blocks()
        frozen = [layer for index, layer in self.layers.items() if index not in fused]
        assert frozen and all(isinstance(layer, FSDPModule) == shard for layer in frozen)
        return move(self, *args)

    move, SAFEModel.to = SAFEModel.to, to  # type: ignore[method-assign]
    StageA.take_step = with_signal  # type: ignore[method-assign]
    encoded: list[int] = []
    cache.encode_batch = lambda encoder, waves, dim: (
        encoded.append(len(waves)) or encode_batch(encoder, waves, dim)
    )
    with pytest.raises(Interrupted, match="saved at step 2 of 3"):
        start(config, dotted_fields(), launch, [probe_watch(shard=shard)])
    assert sum(encoded) in (15, 16)  # this process's half of the clips
    StageA.take_step = take_step  # type: ignore[method-assign]
    launch = Launch(Console(file=io.StringIO()), output, device="cpu", shard=shard)
    evaluation = resume(output / "two", launch, [probe_watch(shard=shard)])
    assert (evaluation is not None) == (os.environ["RANK"] == "0")
    again = evaluate_saved(
        output / "two", launch.console, output=output / "again", device="cpu", shard=shard
    )
    assert (again is not None) == (os.environ["RANK"] == "0")


@pytest.mark.slow
@pytest.mark.usefixtures("in_small_world")
def test_the_command_under_srun(tiny_data: Path, tmp_path: Path) -> None:
    text, codes = srun(
        [str(Path(sys.executable).with_name("safe-train")), "phase1", "--shard", "--device", "cpu",
         "--probe-every", "0", "--backbone", "embedded", "--audio-encoder", "embedded",
         "--data", str(tiny_data), "--set", "optim.max_steps=2",
         "--set", "evaluation.max_new_tokens=4", "--set", "evaluation.bootstrap=10",
         "--output", str(tmp_path), "--name", "run"],
        {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    # two steps train nothing: a verdict of BLOCKED ends the first process with 1
    assert codes == [1, 0] and text.count("BLOCKED: ") == 1, text
    assert (tmp_path / "run" / "report.html").is_file()
    assert text.count("layers split over 2 processes") == 1  # the other one is silent


@pytest.mark.slow
@pytest.mark.usefixtures("in_small_world")
@pytest.mark.parametrize("backbone", ["whole", "sharded"])
def test_two_processes_train_what_one_does(
    backbone: str,
    tiny_data: Path,
    make_tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    # 22 clips are 6 micro-batches, the last one of 2: windows of 3 and 3, shared 2 and 1;
    # 5 test clips are 3 batches of captions, shared 2 and 1
    config = make_tiny_config(
        tiny_data, optim__accumulation=3, optim__max_steps=3, retention__variant="soft_retention",
        retention__every=2, evaluation__every_epochs=9,
        optim__lr_projector=1e-4, optim__lr_adapter=1e-4,  # larger steps magnify rounding
        evaluation__batch_size=2,
    )  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    launched(
        {"whole": TORCHRUN, "sharded": ACCELERATE}[backbone],
        [sys.executable, __file__, str(file), str(tmp_path), backbone],
        {
            **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "SAFE_PROBE_CACHE": str(tmp_path / "cache"),  # nothing is encoded yet
        },
    )  # fmt: skip
    (index,) = (tmp_path / "cache" / "embeddings").glob("*/index.jsonl")
    keys = [json.loads(line)["key"] for line in index.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 31  # a line per encoded clip: each once
    launch = Launch(Console(file=io.StringIO()), tmp_path, "one", device="cpu")
    watch = probe_watch(shard=backbone == "sharded")
    assert start(config, dotted_fields(), launch, [watch]) is not None
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["step"] for row in two] == [1, 2, 3, 3]  # three steps and the last evaluation
    for ours, theirs in zip(one[:3], two[:3], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=LOSS_TOLERANCE)
        assert (theirs["tokens"], theirs["clips"]) == (ours["tokens"], ours["clips"])
        assert ("retention" in theirs) == ("retention" in ours) == (ours["step"] == 2)
    assert two[3] == one[3]  # the evaluation: same score, same interval
    for file in (f"captions/{step_name(3)}.jsonl", "captions/final.jsonl", "evaluation.json"):
        one_has, two_has = ((tmp_path / name / file).read_text() for name in ("one", "two"))
        assert one_has == two_has, file
    own, again = ((tmp_path / name / "evaluation.json").read_text() for name in ("two", "again"))
    assert again == own  # `safe-train evaluate` in two processes
    for name in ("adapter_model.safetensors", "safe_adapter.safetensors"):
        ours, theirs = (load_file(tmp_path / run / "adapter" / name) for run in ("one", "two"))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            gap = (theirs[key] - tensor).norm() / tensor.norm().clamp_min(1e-9)
            assert gap < ADAPTER_TOLERANCE, key

    ours, theirs = (
        {
            (r.step, r.probe, r.component, r.layer, r.statistic): r.value
            for r in RecordLog.read(tmp_path / run / "probes.jsonl")
        }
        for run in ("one", "two")
    )
    assert ours.keys() == theirs.keys() and {key[0] for key in ours} == {0, 1, 2, 3}
    for key, value in ours.items():
        exact = key[0] == 0 and key[-1] not in MAGNIFIES
        near = FIRST_TOLERANCE if exact else PROBE_TOLERANCE
        assert theirs[key] == pytest.approx(value, near, near), key


def test_processes_but_the_first_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    from safe.console import make_console

    monkeypatch.setenv("RANK", "0")
    assert not make_console().quiet
    monkeypatch.setenv("RANK", "1")
    assert make_console().quiet


if __name__ == "__main__":
    join_step()
    worker(
        RunConfig.from_dict(json.loads(Path(sys.argv[1]).read_text())),
        Path(sys.argv[2]),
        shard=sys.argv[3] == "sharded",
    )
