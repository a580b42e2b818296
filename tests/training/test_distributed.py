"""Two processes encode, train and score what one does, stop together when one is told to, resume.

Run under torchrun as `test_distributed.py CONFIG_JSON OUTPUT whole|sharded` this file is one of
the processes.
"""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from configs.overrides import dotted_fields
from configs.schema import RunConfig
from safe.data import cache
from safe.data.encoding import encode_batch
from safe.training.checkpoint import step_name
from safe.training.launch import Launch
from safe.training.run import Interrupted, resume, start
from safe.training.stage_a import StageA

LOSS_TOLERANCE = 1e-5
"""Relative; measured: 1.2e-7 (the sums of a step are taken in another order)."""
ADAPTER_TOLERANCE = 1e-4
"""Relative L2 distance of a tensor after three steps; measured: 5e-6 (AdamW divides by small
gradients, which magnifies the difference)."""


def worker(config: RunConfig, output: Path, *, shard: bool) -> None:
    """Train until process 1, and it alone, gets a signal after step 2; then resume to the end."""
    launch = Launch(Console(file=io.StringIO()), output, "two", device="cpu", shard=shard)
    take_step = StageA.take_step

    def with_signal(self: StageA, *args: Any) -> Any:
        step = take_step(self, *args)
        if self.position.step == 2 and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step

    StageA.take_step = with_signal  # type: ignore[method-assign]
    encoded: list[int] = []
    cache.encode_batch = lambda encoder, waves, dim: (
        encoded.append(len(waves)) or encode_batch(encoder, waves, dim)
    )
    with pytest.raises(Interrupted, match="saved at step 2 of 3"):
        start(config, dotted_fields(), launch)
    assert sum(encoded) in (15, 16)  # this process's half of the clips
    StageA.take_step = take_step  # type: ignore[method-assign]
    launch = Launch(Console(file=io.StringIO()), output, device="cpu", shard=shard)
    evaluation = resume(output / "two", launch)
    assert (evaluation is not None) == (os.environ["RANK"] == "0")


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
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         __file__, str(file), str(tmp_path), backbone],
        env={
            **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "SAFE_PROBE_CACHE": str(tmp_path / "cache"),  # nothing is encoded yet
        },
        capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (index,) = (tmp_path / "cache" / "embeddings").glob("*/index.jsonl")
    keys = [json.loads(line)["key"] for line in index.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 31  # a line per encoded clip: each once
    launch = Launch(Console(file=io.StringIO()), tmp_path, "one", device="cpu")
    assert start(config, dotted_fields(), launch) is not None
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
    for name in ("adapter_model.safetensors", "safe_adapter.safetensors"):
        ours, theirs = (load_file(tmp_path / run / "adapter" / name) for run in ("one", "two"))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            gap = (theirs[key] - tensor).norm() / tensor.norm().clamp_min(1e-9)
            assert gap < ADAPTER_TOLERANCE, key


def test_processes_but_the_first_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    from safe.console import make_console

    monkeypatch.setenv("RANK", "0")
    assert not make_console().quiet
    monkeypatch.setenv("RANK", "1")
    assert make_console().quiet


if __name__ == "__main__":
    worker(
        RunConfig.from_dict(json.loads(Path(sys.argv[1]).read_text())),
        Path(sys.argv[2]),
        shard=sys.argv[3] == "sharded",
    )
