"""Whole trainings that are killed and go on: the end must be that of an undisturbed one."""

import io
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from configs.overrides import dotted_fields
from configs.schema import RunConfig
from safe.training import checkpoint, saving, state
from safe.training import run as runs
from safe.training.batches import CaptionDataset
from safe.training.experiment import prepare
from safe.training.launch import Launch
from safe.training.retention import Retention
from safe.training.stage_a import StageA

KILLS_PER_EPOCH = 3


def kill(folder: str, config: dict[str, Any], runs: int, seed: int = 0) -> dict[str, int]:
    """Kill -9 trainings three times in each epoch, and once between two micro-batches.

    Every other one saves after each step, the others once an epoch. Compare how they end. Only a
    training that is under way is killed; one that has come past the moment goes on to the end.
    """
    root, settings, choose = Path(folder), RunConfig.from_dict(config), random.Random(seed)
    started = time.monotonic()
    os.waitpid(_train(root / "whole", settings, 600.0), 0)
    whole, rows = results(root / "whole"), _rows(root / "whole")
    figures: Counter[str] = Counter(kills=0, halfway=0, differ=0, restarted=0)
    patience, epochs = 20 * (time.monotonic() - started), settings.optim.epochs
    for number in range(runs):
        path, save_seconds = root / f"cut-{number}", 0.0 if number % 2 == 0 else 600.0
        moments = sorted(
            epoch * rows // epochs + choose.randrange(rows // epochs)
            for epoch in range(epochs) for _ in range(KILLS_PER_EPOCH)
        )  # fmt: skip
        for row in (None, *moments):
            if row is None:  # after the first micro-batch of the second step
                pid = _train(path, settings, save_seconds, die_at_batch=4)
                _, status = os.waitpid(pid, 0)
                figures["halfway"] += os.WIFSIGNALED(status)
            else:
                begun = _begun(path)
                pid = _train(path, settings, save_seconds)
                figures["kills"] += _kill_at_row(pid, path, begun, row, choose.random())
            if path.exists() and not (path / "config.json").exists():
                figures["restarted"] += 1  # killed in the instant that the folder was made
                shutil.rmtree(path)
        pid, end = _train(path, settings, save_seconds), time.monotonic() + patience
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < end:
            time.sleep(0.01)
        figures["differ"] += results(path) != whole
        shutil.rmtree(path, ignore_errors=True)
    return {"rows": rows, "runs": runs, "differ": 0, "restarted": 0, **figures}


def results(run: Path) -> dict[str, bytes]:
    """Every file of a run's result; log and environment hold times, older checkpoints vary."""
    last = checkpoint.newest(run / "checkpoints")
    folders = [run / "adapter", run / "captions", *([last] if last else [])]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    files += [run / name for name in ("metrics.jsonl", "evaluation.json", "config.json")]
    return {str(f.relative_to(run)): f.read_bytes() for f in files if f.exists()}


def _rows(run: Path) -> int:
    return _lines(run / "metrics.jsonl", b"\n")


def _begun(run: Path) -> int:
    """How often a training has begun, or gone on."""
    return _lines(run / "log.txt", b" training from step ")


def _lines(file: Path, sign: bytes) -> int:
    return file.read_bytes().count(sign) if file.exists() else 0


def _train(
    path: Path,
    config: RunConfig,
    save_seconds: float,
    *,
    die_at_batch: int | None = None,
    goes_on: bool | None = None,
) -> int:
    """Start the run at ``path``, or go on with it, in a fork; the fork's number."""
    goes_on = path.exists() if goes_on is None else goes_on
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # a fork's thread pool is made anew, and not by two at once
            saving._SAVE_SECONDS = save_seconds
            if die_at_batch is not None:
                _die_at_batch(die_at_batch)
            how = Launch(
                console=Console(file=io.StringIO()), output=path.parent, name=path.name,
                device="cpu",
            )  # fmt: skip
            if goes_on:
                runs.resume(path, how)
            else:
                runs.start(config, dotted_fields(), how)
            code = 0
        finally:
            os._exit(code)
    return pid


def _die_at_batch(number: int) -> None:
    """Kill this process when the training asks for its ``number``-th micro-batch."""
    batch, left = CaptionDataset.batch, number

    def counted(self: CaptionDataset, indices: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(self, indices)

    CaptionDataset.batch = counted  # type: ignore[method-assign]


def _kill_at_row(pid: int, path: Path, begun: int, row: int, wait: float) -> bool:
    """Kill -9 a run a moment after its metrics have ``row`` rows; False when it was done first.

    ``begun`` is how often a training had begun before: rows that this one still has to cut back
    are not its own.
    """
    while _begun(path) == begun or _rows(path) < row:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.002)
    time.sleep(0.1 * wait)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def order(config: dict[str, Any]) -> dict[str, int]:
    """Clips of the steps that a resumed training takes: how many differ from an undisturbed one's?

    It goes on in the middle of the second epoch.
    """
    settings, accelerator = RunConfig.from_dict(config), Accelerator(cpu=True)
    console = Console(file=io.StringIO())
    experiment = prepare(settings, accelerator, console, dotted_fields())

    def trainer() -> tuple[StageA, list[Any]]:
        made = StageA(
            experiment.model, experiment.dataset, settings.optim, accelerator, Retention([])
        )
        taken: list[Any] = []
        made.take_step = lambda window: (taken.append(window), made._count(True))  # type: ignore
        return made, taken

    whole, all_steps = trainer()
    first = whole.steps_per_epoch + 1
    for step in range(whole.total_steps):
        if step == first:
            state = whole.state()
        whole.advance()
    resumed, steps = trainer()
    resumed.load_state(state)
    while not resumed.done:
        resumed.advance()
    pairs = zip(all_steps[first:], steps, strict=True)
    return {"steps": len(steps), "differ": sum(one != other for one, other in pairs)}


def dropout(folder: str) -> dict[str, int]:
    """A model with dropout, saved after three steps and resumed by another: equal after six?"""
    path = Path(folder)

    def model() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        return net, torch.optim.AdamW(
            [{"params": list(net.parameters()), "name": "all", "names": [
                n for n, _ in net.named_parameters()]}], lr=0.1,
        )  # fmt: skip

    def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            net(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    one, optimizer = model()
    train(one, optimizer)
    weights = {name: value.clone() for name, value in one.state_dict().items()}
    state.save_training_state(
        path, optimizer=optimizer, named_parameters=one.named_parameters(), scheduler_step=3,
        progress={},
    )  # fmt: skip
    train(one, optimizer)
    torch.manual_seed(7)
    other, optimizer = model()
    other.load_state_dict(weights)
    state.load_training_state(path, optimizer=optimizer, named_parameters=other.named_parameters())
    train(other, optimizer)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return {"differ": sum(not torch.equal(a, b) for a, b in pairs)}
