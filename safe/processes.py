"""The processes of one run, as torchrun, accelerate or srun start them, and what they tell.

Without torch.distributed there is one process, number 0.
"""

from typing import Any, TypeVar

import torch.distributed as dist

_T = TypeVar("_T")


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if _several() else 0


def gather(value: _T) -> list[_T]:
    """The ``value`` of every process, in rank order; all of them must call it together."""
    if not _several():
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
