"""Opening other people's .pt files without running anything that they contain."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.errors import ModelError

# Training scripts leave NumPy scalars (epoch, loss, class counts) beside the weights.
# NumPy 2 writes another module name for the same function.
_SCALAR: Any = vars(np.core.multiarray)["scalar"]
_NUMPY_GLOBALS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("int32", "int64", "float32", "float64")),
]


def open_checkpoint(path: Path) -> Any:
    """Read a PyTorch checkpoint with ``weights_only=True``, allowing NumPy numbers.

    Raises:
        ModelError: no such file, damaged, or with objects other than tensors and numbers.
    """
    if not path.is_file():  # a device would be read for ever
        raise ModelError(f"no checkpoint {path}")
    try:
        _check_sizes(path)
        with torch.serialization.safe_globals(_NUMPY_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's bytes may raise anything, MemoryError for one
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "damaged"
        raise ModelError(
            f"{path}: not a checkpoint that can be opened safely ({reason})"
        ) from error


def _check_sizes(path: Path) -> None:
    """Raise UnpicklingError for a zip that grows: torch stores its files uncompressed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        if declared > path.stat().st_size:
            raise pickle.UnpicklingError(f"its files would grow to {declared:,} bytes")


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
