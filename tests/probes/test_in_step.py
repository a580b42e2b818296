"""`diagnose(..., in_step=True)` on a model split over two processes says what one process says.

Run as `test_in_step.py RANK PORT OUTPUT` this file is one of the processes.
"""

import json
import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from probes.diagnosis import diagnose
from probes.errors import PathError
from probes.signal_path import SignalPath

MAGNIFIES = ("slope_mismatch", "changed_logits")
"""Statistics that make a last bit larger, as in tests/training/test_distributed.py."""


def look(toy: Any, path: SignalPath, batch: Any, **options: Any) -> dict[str, Any]:
    """Diagnose with every probe; values by place, and what was not measured."""
    optimizer = torch.optim.AdamW(toy.adapter.parameters(), lr=1e-3)
    found = diagnose(toy, [batch], path, optimizer=optimizer, **options)
    values = {f"{r.probe} {r.component} {r.layer} {r.statistic}": r.value for r in found.log}
    return {"values": values, "not_measured": dict(found.not_measured)}


def worker(rank: int, port: int, output: Path) -> None:
    """Split the frozen blocks over both processes and diagnose in step."""
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest

    torch.manual_seed(0)
    toy = conftest.Toy()
    (output / f"{rank}.yaml").write_text(conftest.TOY_YAML)
    path = SignalPath.from_yaml(output / f"{rank}.yaml")
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2
    )
    mesh = init_device_mesh("cpu", (2,))
    for block in toy.lm.blocks:
        fully_shard(block, mesh=mesh)
    assert all(isinstance(block, FSDPModule) for block in toy.lm.blocks)
    with pytest.raises(PathError, match="diagnose in every process with in_step=True"):
        look(toy, path, conftest.toy_batch())
    found = look(toy, path, conftest.toy_batch(), in_step=True)
    (output / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_measure_what_one_does(
    toy: Any, toy_path: SignalPath, make_batch: Any, tmp_path: Path
) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, __file__]
    tasks = [
        subprocess.Popen(
            [*command, str(rank), str(port), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        text = "".join(task.communicate(timeout=300)[0] for task in tasks)
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0], text
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    whole = look(toy, toy_path, make_batch())
    assert first["not_measured"] == second["not_measured"] == whole["not_measured"]
    assert first["values"].keys() == second["values"].keys() == whole["values"].keys()
    assert len(whole["values"]) > 100
    for place, expected in whole["values"].items():
        one, other = first["values"][place], second["values"][place]
        assert one == other or (math.isnan(one) and math.isnan(other)), place
        if not place.endswith(MAGNIFIES):
            assert one == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True), place


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
