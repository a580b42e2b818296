"""Where a parameter stands in an optimizer."""

from typing import NamedTuple

from torch.optim import Optimizer


class Place(NamedTuple):
    """A parameter's entry in ``optimizer.param_groups``."""

    lr: float
    """Learning rate now (schedulers change it)."""
    weight_decay: float
    group: int
    """Index of its (first) parameter group."""
    times: int
    """How often the optimizer holds it; more than 1 is a mistake."""


def places(optimizer: Optimizer) -> dict[int, Place]:
    """Every parameter of the optimizer by ``id``."""
    found: dict[int, Place] = {}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            old = found.get(id(parameter))
            first = old or Place(
                float(group["lr"]), float(group.get("weight_decay", 0.0)), index, 0
            )
            found[id(parameter)] = first._replace(times=first.times + 1)
    return found
