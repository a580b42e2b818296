"""Opening other people's .pt files without running, or trusting, anything that they contain."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from configs.errors import ModelError
from safe.child import Child, ChildFailed

_MODULE = "safe.models.foreign_checkpoint"
_SECONDS, _SECONDS_PER_MB = 60.0, 0.1
_SPARE_BYTES = 512 * 2**20
_COPIES = 3  # what is read, what is kept of it, and what is written


def open_checkpoint(path: Path, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch checkpoint whose names hold one of ``parts``.

    A child process reads it with ``weights_only=True`` (NumPy numbers are allowed), in at most
    60 s and 0.1 s per MB, and in 512 MB of memory and three times the file's size; it writes the
    tensors into a private folder as safetensors, which is all that this process reads. Names are
    keys and places joined by "/", as "state_dict/audio_branch.norm.weight".

    Raises:
        ModelError: no such file, damaged, with objects other than tensors and numbers, or
            something that breaks a limit.
    """
    with Child(_MODULE) as child:
        return open_in(child, path, parts)


def open_in(child: Child, path: Path, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Do what `open_checkpoint` does, in a child that is there already."""
    require_checkpoint(path)
    size = path.stat().st_size
    with tempfile.TemporaryDirectory(prefix="safe-probe-") as folder:
        target = Path(folder, "checkpoint.safetensors")
        question = {"path": str(path.absolute()), "target": str(target), "parts": parts}
        try:
            answer, _ = child.ask(
                question,
                seconds=_SECONDS + _SECONDS_PER_MB * size / 2**20,
                memory=_COPIES * size + _SPARE_BYTES,
                file_bytes=size + _SPARE_BYTES,
            )
            if "refused" in answer:
                raise _unsafe(path, answer["refused"])
            return load_file(target)
        except (ChildFailed, SafetensorError, OSError) as error:
            raise _unsafe(path, error) from error


def require_checkpoint(path: Path) -> None:
    """Raise ModelError where there is no regular file: a device would be read for ever."""
    if not path.is_file():
        raise ModelError(f"no checkpoint {path}")


def _unsafe(path: Path, reason: object) -> ModelError:
    return ModelError(f"{path}: not a checkpoint that can be opened safely ({reason})")


def part_of(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries of a state dict under ``prefix``, without it."""
    return {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}


def load_exactly(module: torch.nn.Module, state: dict[str, Any], what: str) -> None:
    """Load ``state`` into ``module``, every key and no other.

    Raises:
        ModelError: missing or unexpected keys, which are listed, or other shapes.
    """
    own = module.state_dict()
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "another shape": sorted(wrong),
    }
    if any(problems.values()):
        lines = [f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys]
        raise ModelError(f"{what} does not fit ({'; '.join(lines)})")
    module.load_state_dict(state)
