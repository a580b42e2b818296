"""One optimizer step that never happened: look at what moves, then everything is as before."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def trial_step(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], *, fresh: bool = False
) -> Iterator[dict[int, Tensor]]:
    """Step on a copy of the optimizer's state; inside the block the parameters have moved.

    Afterwards, also after an exception, parameters, state, groups and further attributes of the
    optimizer are the objects and the bits that they were. The user's step hooks (averages,
    logging) do not run, and a scheduler does not notice.

    Args:
        optimizer: steps on the gradients in ``.grad``; tensors that are not among ``parameters``
            keep theirs, but do not step.
        parameters: the model's parameters that have a gradient to step on.
        fresh: step without what the optimizer remembers and without weight decay, so by these
            gradients alone.

    Yields:
        The values before the step, by ``id`` of the tensor.
    """
    optimizer = bare_optimizer(optimizer)
    mine = {id(p): p for p in parameters}
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    everything = mine | held
    strangers = [(p, p.grad) for key, p in held.items() if key not in mine]
    before = {key: p.detach().clone() for key, p in everything.items()}
    attributes = dict(vars(optimizer))
    try:
        for parameter, _ in strangers:
            parameter.grad = None
        optimizer.state = (  # parameters are not copied
            defaultdict(dict) if fresh else deepcopy(optimizer.state, dict(everything))
        )
        optimizer.param_groups = deepcopy(optimizer.param_groups, dict(everything))
        for group in optimizer.param_groups:
            if fresh and group.get("weight_decay"):
                group["weight_decay"] = 0.0
        for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
            setattr(optimizer, name, {})
        type(optimizer).step(optimizer)  # past a scheduler's patch of the instance
        yield before
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        for parameter, gradient in strangers:
            parameter.grad = gradient
        for key, parameter in everything.items():
            parameter.data.copy_(before[key])


def bare_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer without wrappers that hold it as ``.optimizer`` (accelerate)."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def fingerprint(tensor: Tensor) -> int:
    """A sum over the bits; a tensor that changed has another one but for a rare coincidence.

    Allocates nothing of the size of a contiguous tensor, so billions of frozen weights can be
    compared before and after. Of a tensor that is split over processes, the part that is here.
    """
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    return int(flat.view(_INTEGERS[flat.element_size()]).sum(dtype=torch.int64))
