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
from safe.training.stage_a import StageA, TrainingDiverged


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
def _weight(parameter: Tensor, value: float) -> Iterator[None]:
    good = parameter.detach().clone()
    parameter.data.view(-1)[min(2, parameter.numel() - 1)] = value
    yield
    parameter.data.copy_(good)


def _trainer(config: dict[str, Any], max_bad_steps: int) -> StageA:
    settings, accelerator = RunConfig.from_dict(config), Accelerator(cpu=True)
    optim = replace(
        settings.optim, batch_size=2, accumulation=2, epochs=100, max_bad_steps=max_bad_steps
    )
    console = Console(file=io.StringIO())
    experiment = prepare(replace(settings, optim=optim), accelerator, console, dotted_fields())
    return StageA(experiment.model, experiment.dataset, optim, accelerator, Retention([]))


def _places(trainer: StageA) -> dict[str, Callable[[float], Any]]:
    """Where a number can go wrong, and what makes it so while it is entered."""
    model = trainer.model
    layer, block = next(iter(model.fusion.blocks().items()))
    lora = next(p for n, p in block.named_parameters() if "lora" in n.lower())
    frozen = next(p for p in model.layers[layer].parameters() if not p.requires_grad)
    return {
        "embedding": lambda value: _embedding(trainer, value),
        "projector": lambda value: _hook(model.projector, _spoilt(value)),
        "branch": lambda value: _hook(block.o_proj, _spoilt(value)),
        "decoder layer": lambda value: _hook(model.layers[layer], _spoilt(value)),
        "logits": lambda value: _hook(model.backbone.get_output_embeddings(), _spoilt(value)),
        "loss": lambda value: _loss(trainer, value),
        "gradient": lambda value: _gradient(trainer, value),
        "projector weight": lambda value: _weight(next(model.projector.parameters()), value),
        "LoRA weight": lambda value: _weight(lora, value),
        "gate": lambda value: _weight(block.residual.residual_scale, value),
        "frozen weight": lambda value: _weight(frozen, value),
    }


def sites(config: dict[str, Any]) -> dict[str, Any]:
    """Take a step with each value at each site; list where a weight moved or became not finite."""
    trainer = _trainer(config, max_bad_steps=99)
    trainer.advance()
    moved, cases, skipped = [], 0, 0
    for place, spoil in _places(trainer).items():
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


def stops(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Leave a NaN where it is: list the places that do not stop a training after ``steps``."""
    wrong, names = [], list(_places(_trainer(config, steps)))
    for place in names:
        trainer = _trainer(config, steps)
        spoil, clips = _places(trainer)[place], trainer.dataset.clip_ids
        with spoil(math.nan):
            try:
                for _ in range(steps + 1):
                    trainer.advance()
                wrong.append(f"{place}: goes on")
            except ModelError as error:  # embeddings are looked at before they are used
                if place != "embedding":
                    wrong.append(f"{place}: {error}")
            except TrainingDiverged as error:
                if trainer.position.step != steps or not any(clip in str(error) for clip in clips):
                    wrong.append(f"{place}: step {trainer.position.step}: {error}")
    return {"places": len(names), "wrong": wrong}
