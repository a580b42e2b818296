"""How other tools follow the gradients of a training, where they are installed.

wandb.watch keeps a histogram of every gradient, cockpit its norm. Cockpit asks for a setuptools
below 81, which the environment of the project has not.
"""

import os
import tempfile
import warnings
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from itertools import count
from typing import Any

from torch import Tensor, nn

from benchmarks.speed.pairs import Work

LIBRARIES = ("wandb", "cockpit-for-pytorch")


def gradient_peers(model: nn.Module, backward: Callable[[], Tensor]) -> dict[str, Work]:
    """Work by name, each with a forward and backward pass, which returns its loss."""
    found: dict[str, Work] = {}
    if find_spec("wandb") is not None:
        found["wandb.watch, a histogram of each"] = _wandb(model, backward)
    if find_spec("cockpit") is not None and find_spec("pkg_resources") is not None:
        found["cockpit, GradNorm"] = _cockpit(model, backward)
    return found


def _wandb(model: nn.Module, backward: Callable[[], Tensor]) -> Work:
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(prefix="speed-wandb-"))

    def work() -> None:
        run.watch(model, log="gradients", log_freq=1)
        try:
            backward()
            run.log({})
        finally:
            run.unwatch(model)  # or its hooks would slow down everybody else

    weakref.finalize(work, run.finish)  # or its threads would, too
    return work


def _cockpit(model: nn.Module, backward: Callable[[], Tensor]) -> Work:
    with warnings.catch_warnings(action="ignore"):
        from cockpit import Cockpit
        from cockpit.quantities import GradNorm

    parameters, steps = [p for p in model.parameters() if p.requires_grad], count()
    cockpit = Cockpit(parameters, quantities=[GradNorm(track_schedule=lambda _step: True)])

    def work() -> None:
        info: dict[str, Any] = dict.fromkeys(("batch_size", "individual_losses", "optimizer"))
        with cockpit(next(steps), info=info):
            info["loss"] = backward()

    return work
