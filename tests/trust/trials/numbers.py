"""NaN and infinity at every place of a training step."""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from configs.errors import ModelError
from configs.overrides import dotted_fields
from configs.schema import RunConfig
from safe.training.experiment import prepare
from safe.training.retention import Retention
from safe.training.stage_a import StageA


@contextmanager
def _embedding(trainer: StageA, value: float) -> Iterator[None]:
    found = trainer.dataset.batch

    def batch(indices: Any) -> Any:
        good = found(indices)
        audio = good.audio.clone()
        audio[0, 3] = value
        return replace(good, audio=audio)

    trainer.dataset.batch = batch  # type: ignore[method-assign]
    yield
    del trainer.dataset.batch


@contextmanager
def _hook(module: torch.nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = module.register_forward_hook(hook)
    yield
    handle.remove()


def _spoilt(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        other = tensor.clone()
        other.view(-1)[5] = value
        return other

    return change


@contextmanager
def _loss(trainer: StageA, value: float) -> Iterator[None]:
    forward = trainer.model.forward

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return output._replace(loss=output.loss + value)

    trainer.model.forward = spoilt  # type: ignore[method-assign]
    yield
    del trainer.model.forward


@contextmanager
def _gradient(trainer: StageA, value: float) -> Iterator[None]:
    parameter = next(iter(trainer.parameters.values()))
    handle = parameter.register_hook(_spoilt(value))
    yield
    handle.remove()


@contextmanager
def _weight(trainer: StageA, value: float) -> Iterator[None]:
    parameter = next(iter(trainer.parameters.values()))
    good = parameter.detach().clone()
    parameter.data.view(-1)[2] = value
    yield
    parameter.data.copy_(good)


def sites(config: dict[str, Any]) -> dict[str, Any]:
    """Take a step with each value at each site; list where a weight moved or became not finite."""
    settings, accelerator = RunConfig.from_dict(config), Accelerator(cpu=True)
    optim = replace(settings.optim, batch_size=2, accumulation=2, epochs=100, max_bad_steps=99)
    console = Console(file=io.StringIO())
    experiment = prepare(replace(settings, optim=optim), accelerator, console, dotted_fields())
    model = experiment.model
    trainer = StageA(model, experiment.dataset, optim, accelerator, Retention([]))
    trainer.advance()
    block = next(iter(model.fusion.blocks().values()))
    places: dict[str, Callable[[float], Any]] = {
        "embedding": lambda value: _embedding(trainer, value),
        "projector": lambda value: _hook(model.projector, _spoilt(value)),
        "branch": lambda value: _hook(block.o_proj, _spoilt(value)),
        "loss": lambda value: _loss(trainer, value),
        "gradient": lambda value: _gradient(trainer, value),
        "weight": lambda value: _weight(trainer, value),
    }
    moved, cases, skipped = [], 0, 0
    for place, spoil in places.items():
        for value in (math.nan, math.inf, -math.inf):
            with spoil(value):
                before = {n: p.detach().clone() for n, p in trainer.parameters.items()}
                bad = trainer.position.skipped
                try:
                    trainer.advance()
                    skip = trainer.position.skipped - bad
                except ModelError:  # embeddings are looked at before they are used
                    skip = 1
                same = all(torch.equal(p.nan_to_num(7.0), before[n].nan_to_num(7.0))
                           for n, p in trainer.parameters.items())  # fmt: skip
            finite = all(bool(p.isfinite().all()) for p in trainer.parameters.values())
            # an infinite number may be bounded on its way, and the step be sound; NaN never
            if not (same if skip else finite and math.isinf(value)):
                moved.append(f"{place}={value}")
            cases, skipped = cases + 1, skipped + skip
    moments = [t for state in trainer.optimizer.state.values() for t in state.values()]
    if not all(bool(t.isfinite().all()) for t in moments):
        moved.append("the optimizer's moments")
    return {"cases": cases, "skipped": skipped, "moved": moved}
