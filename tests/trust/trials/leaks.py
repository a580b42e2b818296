"""Trainings and measurements that go on for long: what a process holds must not grow."""

import gc
import importlib.util
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from torch import nn

from configs.overrides import dotted_fields
from configs.schema import RunConfig
from probes.diagnosis import diagnose
from probes.signal_path import SignalPath
from safe.training.experiment import prepare
from safe.training.retention import Retention
from safe.training.stage_a import StageA

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _census(model: nn.Module) -> dict[str, float]:
    gc.collect()
    hooks = sum(len(getattr(m, name)) for m in model.modules() for name in _HOOKS)
    hooks += sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "files": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task")),
        "hooks": hooks, "temp_files": len(os.listdir(tempfile.gettempdir())),
        "megabytes": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    }  # fmt: skip


def _growth(model: nn.Module, once: Callable[[], object], rounds: int) -> dict[str, float]:
    """What the process holds more after ``rounds`` than after the first fifth of them."""
    with tempfile.TemporaryDirectory() as own:  # other processes write into the usual one
        tempfile.tempdir = own
        for _ in range(rounds // 5):
            once()
        before = _census(model)
        for _ in range(rounds - rounds // 5):
            once()
        after = _census(model)
        tempfile.tempdir = None
    return {"rounds": rounds, **{name: round(after[name] - before[name], 1) for name in before}}


def steps(config: dict[str, Any], rounds: int) -> dict[str, float]:
    """Optimizer steps of one training."""
    settings = RunConfig.from_dict(config)
    optim = replace(settings.optim, batch_size=2, accumulation=1, epochs=10 * rounds)
    accelerator = Accelerator(cpu=True)
    console = Console(file=io.StringIO())
    experiment = prepare(replace(settings, optim=optim), accelerator, console, dotted_fields())
    trainer = StageA(experiment.model, experiment.dataset, optim, accelerator, Retention([]))
    return _growth(experiment.model, trainer.advance, rounds)


def probes(toy: str, rounds: int) -> dict[str, float]:
    """Diagnoses of one model; ``toy`` is the file that defines it."""
    spec = importlib.util.spec_from_file_location("toy", toy)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Toy()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(module.TOY_YAML)
        file.flush()
        path = SignalPath.from_yaml(file.name)
    batches = [module.toy_batch(seed=seed) for seed in range(2)]
    chosen = ("magnitude", "gates", "gradflow", "parameters", "influence")
    return _growth(model, lambda: diagnose(model, batches, path, probes=chosen), rounds)
