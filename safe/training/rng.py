"""The random generators of python, numpy, torch and CUDA as plain values, without pickle."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import CheckpointError


@dataclass(frozen=True)
class RngState:
    """The state of every generator of one process."""

    values: dict[str, Any]
    """JSON: python's state, and numpy's but for its words."""
    tensors: dict[str, Tensor]
    """"numpy" int64 [624] (uint32 words), "torch" uint8 [n], "cuda.0" uint8 [m], ..."""


def capture_rng() -> RngState:
    """Read the generators of this process; none of them moves."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
    }
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda.{index}"] = state
    values = {
        "python": [version, list(words), gauss],
        "numpy": {
            "bit_generator": str(legacy["bit_generator"]),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
    }
    return RngState(values, tensors)


def restore_rng(state: RngState) -> list[str]:
    """Set the generators of this process; return a sentence for each that could not be set.

    Raises:
        CheckpointError: the state is not one that `capture_rng` makes.
    """
    try:
        version, words, gauss = state.values["python"]
        numpy_values = state.values["numpy"]
        key = state.tensors["numpy"].numpy().astype(np.uint32)
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(
            {
                "bit_generator": numpy_values["bit_generator"],
                "state": {"key": key, "pos": numpy_values["pos"]},
                "has_gauss": numpy_values["has_gauss"],
                "gauss": numpy_values["gauss"],
            }
        )
        torch.set_rng_state(state.tensors["torch"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            "the checkpoint's random generators cannot be restored: "
            f"{type(error).__name__}: {error}"
        ) from error
    return _restore_cuda(
        {name: tensor for name, tensor in state.tensors.items() if name.startswith("cuda.")}
    )


def _restore_cuda(saved: dict[str, Tensor]) -> list[str]:
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(min(here, len(saved))):
        torch.cuda.set_rng_state(saved[f"cuda.{index}"], index)
    if here == len(saved):
        return []
    return [
        f"the checkpoint has the generators of {len(saved)} CUDA devices, this machine has "
        f"{here}: from here on the run is not bit-equal to an uninterrupted one"
    ]
