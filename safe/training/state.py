"""Optimizer, scheduler position, random generators and progress as safetensors and JSON.

The model's own weights are not here: the adapter saves itself beside these files.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import CheckpointError, FileError
from configs.json_files import read_json
from safe.checkpoint_manifest import as_json
from safe.training.optimizer_state import describe_optimizer, fill_optimizer, optimizer_tensors
from safe.training.rng import RngState, capture_rng, restore_rng

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
RNG_FILE = "rng.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TrainingState:
    """What `load_training_state` hands back; optimizer and generators are set already."""

    scheduler_step: int
    """How many times the scheduler had stepped."""
    progress: dict[str, Any]
    """The JSON values given to `save_training_state`."""
    notes: tuple[str, ...]
    """Sentences to print: what could not be restored exactly on this machine."""


def save_training_state(
    folder: Path,
    *,
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    scheduler_step: int,
    progress: dict[str, Any],
    rng_states: Sequence[RngState] | None = None,
) -> None:
    """Write trainer_state.json, optimizer.safetensors and rng.safetensors into `folder`.

    Args:
        folder: an existing folder, usually the one that `checkpoint.publish` hands out.
        optimizer: torch's AdamW, bare or wrapped by accelerate.
        named_parameters: names for at least the optimizer's parameters, as from
            `model.named_parameters()` of the unwrapped model.
        scheduler_step: how many times the scheduler has stepped.
        progress: JSON values (epoch, position, global step, best score, ...); no clock times,
            so that a repeated save of one step has the same bytes.
        rng_states: one per process, in rank order; this process's own by default.

    Raises:
        CheckpointError: another optimizer or amsgrad, a parameter without a name, NaN or infinity
            in the optimizer's state, or values that JSON cannot hold.
        OSError: the disk failed.
    """
    states = [capture_rng()] if rng_states is None else list(rng_states)
    names = dict(named_parameters)
    document = {
        "format_version": FORMAT_VERSION,
        "optimizer": describe_optimizer(optimizer, names),
        "scheduler_step": scheduler_step,
        "progress": progress,
        "rng": [state.values for state in states],
    }
    text = json.dumps(as_json(document, "the training state"), indent=1, sort_keys=True)
    rng_tensors = {
        f"{rank}.{name}": tensor
        for rank, state in enumerate(states)
        for name, tensor in state.tensors.items()
    }
    save_file(optimizer_tensors(optimizer, names), folder / OPTIMIZER_FILE)
    save_file(rng_tensors, folder / RNG_FILE)
    (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def load_training_state(
    folder: Path,
    *,
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    rank: int = 0,
) -> TrainingState:
    """Set `optimizer` and this process's random generators from `folder`.

    Call it last before the loop goes on, since anything random in between would move the
    generators, and on a folder that `checkpoint.verify` accepted. Everything is compared before
    anything is changed.

    Raises:
        CheckpointError: a file is missing or damaged, the parameters differ (the first one is
            named), the state holds NaN or infinity, or there is no generator for this rank.
    """
    document = _read_document(folder / STATE_FILE)
    tensors = read_tensors(folder / OPTIMIZER_FILE)
    rng = _rng_of(document["rng"], read_tensors(folder / RNG_FILE), rank)
    fill_optimizer(optimizer, dict(named_parameters), document["optimizer"], tensors)
    notes = restore_rng(rng)
    return TrainingState(document["scheduler_step"], document["progress"], tuple(notes))


def read_progress(folder: Path) -> dict[str, Any]:
    """Return the progress saved in `folder` without touching optimizer or generators.

    Raises:
        CheckpointError: trainer_state.json is missing or damaged.
    """
    progress: dict[str, Any] = _read_document(folder / STATE_FILE)["progress"]
    return progress


def _rng_of(values: list[dict[str, Any]], tensors: dict[str, Tensor], rank: int) -> RngState:
    if rank >= len(values):
        raise CheckpointError(
            f"the checkpoint was saved by {len(values)} process(es), and this is "
            f"rank {rank}; resume with as many processes as before"
        )
    prefix = f"{rank}."
    return RngState(
        values[rank],
        {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        },
    )


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path)
    except (FileNotFoundError, FileError) as error:
        raise CheckpointError(f"{error}; resume from another checkpoint") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version is {version!r}; this safe-probe reads only "
            f"version {FORMAT_VERSION}"
        )
    kinds = {"optimizer": dict, "scheduler_step": int, "progress": dict, "rng": list}
    for key, kind in kinds.items():
        if not isinstance(document.get(key), kind):
            raise CheckpointError(f"{path}: {key!r} is missing or not a {kind.__name__}")
    return document


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error}; resume from another checkpoint"
        ) from error
