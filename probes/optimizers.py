"""Where a parameter stands in an optimizer."""

from typing import Any, NamedTuple

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


def scale_of(optimizer: Optimizer | None) -> float:
    """What the loss is multiplied by before backward: of accelerate's scaler, 1 without one."""
    while optimizer is not None:
        scaler: Any = getattr(optimizer, "scaler", None)
        if scaler is not None and scaler.is_enabled():
            return float(scaler.get_scale())
        inner = getattr(optimizer, "optimizer", None)
        optimizer = inner if isinstance(inner, Optimizer) else None
    return 1.0
