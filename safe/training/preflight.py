"""What can be known to go wrong before the first step is taken."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from configs.errors import CheckpointError
from safe.training.checkpoint import KEEP, checkpoints, free_bytes

_COPIES = 3
"""A weight and the two averages that AdamW keeps of its gradient."""


def check_room(folder: Path, parameters: Iterable[Tensor]) -> None:
    """Refuse to train when the checkpoints will not fit where they go.

    While one is written there are KEEP others; those that are there already need no more room.

    Args:
        folder: where the run's checkpoints go.
        parameters: what is trained.

    Raises:
        CheckpointError: too little room; says where, how much is needed and how much is free.
    """
    one = _COPIES * sum(p.numel() * p.element_size() for p in parameters)
    needed = one * max(1, KEEP + 1 - len(checkpoints(folder)))
    free = free_bytes(folder)
    if free < needed:
        raise CheckpointError(
            f"{folder}: the checkpoints of this run need at least {needed:,} bytes, {free:,} bytes "
            "are free there; nothing was trained; make room, then --resume, or choose another "
            "--output"
        )
