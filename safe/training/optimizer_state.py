"""AdamW's state by parameter name: hyperparameters as JSON, moments and step counts as tensors.

torch's own state dict numbers the parameters and needs pickle; names survive a reordering and let
a mismatch be reported by the parameter that differs.
"""

import math
from typing import Any

import torch
from torch import Tensor

from configs.errors import CheckpointError

_PARTS = ("step", "exp_avg", "exp_avg_sq")
_MACHINE_KEYS = ("foreach", "fused", "capturable", "differentiable")
"""How this machine computes the update: kept as they are here, not taken from the checkpoint."""
_SCHEDULED = ("lr", "initial_lr")
"""What a training changes by itself, and a checkpoint may bring; all else must be this run's."""


def describe_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[str, Tensor]
) -> dict[str, Any]:
    """Return JSON values: each group's hyperparameters, and its parameters with shape and dtype.

    Groups are named by their "name" key, or group-0, group-1, ... where they have none.

    Raises:
        CheckpointError: no AdamW, amsgrad, two groups of one name, or a parameter without a name.
    """
    adamw, groups = _bare_adamw(optimizer), {}
    for name, group in _named_groups(adamw).items():
        groups[name] = {
            "hyperparameters": {
                key: _plain(value)
                for key, value in group.items()
                if key not in ("params", "param_names", "name", *_MACHINE_KEYS)
            },
            "parameters": [
                [key, list(parameter.shape), str(parameter.dtype)]
                for key, parameter in _named_parameters(name, group, names)
            ],
        }
    return {"class": type(adamw).__name__, "groups": groups}


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return NAME/exp_avg and NAME/exp_avg_sq (the parameter's shape) and NAME/step (scalar).

    A parameter that never had a gradient has no state and is left out.

    Raises:
        CheckpointError: as `describe_optimizer`, or a state holds NaN or infinity.
    """
    adamw, tensors = _bare_adamw(optimizer), {}
    for name, group in _named_groups(adamw).items():
        for key, parameter in _named_parameters(name, group, names):
            state = adamw.state.get(parameter, {})
            for part in _PARTS if state else ():
                tensors[f"{key}/{part}"] = state[part].detach().contiguous()
    _check_finite(tensors)
    return tensors


def fill_optimizer(
    optimizer: torch.optim.Optimizer,
    names: dict[str, Tensor],
    saved: dict[str, Any],
    tensors: dict[str, Tensor],
) -> None:
    """Give `optimizer` the saved hyperparameters and states; unchanged when anything differs.

    Raises:
        CheckpointError: it names the first group, parameter or tensor that differs.
    """
    adamw = _bare_adamw(optimizer)
    _compare(saved, describe_optimizer(adamw, names))
    groups = _named_groups(adamw)
    states: dict[Tensor, dict[str, Tensor]] = {}
    rest = dict(tensors)
    for name, group in groups.items():
        for key, parameter in _named_parameters(name, group, names):
            state = _take_state(key, parameter, rest)
            if state:
                on_device = bool(group.get("capturable") or group.get("fused"))
                states[parameter] = _placed(state, parameter, on_device)
    if rest:
        raise CheckpointError(
            f"the checkpoint's optimizer has a tensor {min(rest)!r} that belongs "
            "to no parameter of this run"
        )
    _check_finite(tensors)
    adamw.state.clear()
    adamw.state.update(states)
    for name, group in groups.items():
        group.update(_restored(group, saved["groups"][name]["hyperparameters"]))


def _bare_adamw(optimizer: torch.optim.Optimizer) -> torch.optim.AdamW:
    bare: Any = optimizer
    while isinstance(getattr(bare, "optimizer", None), torch.optim.Optimizer):
        bare = bare.optimizer  # accelerate's wrapper
    if not isinstance(bare, torch.optim.AdamW):
        raise CheckpointError(
            f"the optimizer is {type(bare).__name__}; only torch.optim.AdamW can "
            "be saved and restored"
        )
    if any(group.get("amsgrad") for group in bare.param_groups):
        raise CheckpointError(
            "the optimizer uses amsgrad=True, whose state is not saved; use amsgrad=False"
        )
    return bare


def _named_groups(adamw: torch.optim.AdamW) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for index, group in enumerate(adamw.param_groups):
        name = str(group.get("name", f"group-{index}"))
        if name in groups:
            raise CheckpointError(f"two parameter groups are called {name!r}; give each its own")
        groups[name] = group
    return groups


def _named_parameters(
    group_name: str, group: dict[str, Any], names: dict[str, Tensor]
) -> list[tuple[str, Tensor]]:
    by_identity = {id(parameter): name for name, parameter in names.items()}
    found = []
    for index, parameter in enumerate(group["params"]):
        name = by_identity.get(id(parameter))
        if name is None:
            raise CheckpointError(
                f"parameter {index} of group {group_name!r}, shape "
                f"{list(parameter.shape)}, has no name in named_parameters"
            )
        found.append((name, parameter))
    return found


def _compare(saved: dict[str, Any], ours: dict[str, Any]) -> None:
    if saved.get("class") != ours["class"] or not isinstance(saved.get("groups"), dict):
        raise CheckpointError(
            f"the checkpoint's optimizer is {saved.get('class')!r}, this run's is {ours['class']!r}"
        )
    if saved["groups"].keys() != ours["groups"].keys():
        raise CheckpointError(
            "the checkpoint's parameter groups are "
            f"{sorted(saved['groups'])}, this run's are {sorted(ours['groups'])}"
        )
    for name, group in ours["groups"].items():
        theirs, mine = saved["groups"][name]["parameters"], group["parameters"]
        for index in range(max(len(theirs), len(mine))):
            there = _at(theirs, index)
            here = _at(mine, index)
            if there != here:
                raise CheckpointError(
                    f"parameter {index} of group {name!r} is {there} in the checkpoint and {here} "
                    "in this run; resume with the config that the run was started with"
                )
    for name, group in ours["groups"].items():
        _compare_hyperparameters(name, saved["groups"][name], group["hyperparameters"])


def _compare_hyperparameters(name: str, saved: dict[str, Any], ours: dict[str, Any]) -> None:
    for key, there in saved["hyperparameters"].items():
        here = ours.get(key, "absent")
        if key in _SCHEDULED:
            fits = isinstance(there, int | float) and math.isfinite(there)
        else:
            fits = there == here
        if not fits:
            raise CheckpointError(
                f"{key} of group {name!r} is {there!r} in the checkpoint and {here!r} in this run; "
                "resume with the config that the run was started with"
            )


def _at(parameters: list[Any], index: int) -> str:
    if index >= len(parameters):
        return "absent"
    name, shape, dtype = parameters[index]
    return f"{name!r} {shape} {dtype}"


def _take_state(name: str, parameter: Tensor, rest: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove one parameter's tensors from `rest` and return them: all three, or none."""
    state = {part: rest.pop(f"{name}/{part}") for part in _PARTS if f"{name}/{part}" in rest}
    missing = [part for part in _PARTS if part not in state]
    if state and missing:
        raise CheckpointError(f"the checkpoint's optimizer lacks {name}/{missing[0]}")
    for part, tensor in state.items():
        shape = torch.Size([]) if part == "step" else parameter.shape
        if tensor.shape != shape:
            raise CheckpointError(
                f"the checkpoint's {name}/{part} has shape "
                f"{list(tensor.shape)}, this run needs {list(shape)}"
            )
    return state


def _placed(state: dict[str, Tensor], parameter: Tensor, step_on_device: bool) -> dict[str, Tensor]:
    """Move a state to where AdamW wants it: moments beside the parameter, the step often not."""
    step_device = parameter.device if step_on_device else torch.device("cpu")
    return {
        part: tensor.to(step_device if part == "step" else parameter.device)
        for part, tensor in state.items()
    }


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"the optimizer's {name} holds NaN or infinity; a run must not go on from it"
            )


def _plain(value: Any) -> Any:
    """Return a hyperparameter as JSON: tensors and NumPy scalars as numbers, tuples as lists."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def _restored(group: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Undo `_plain`: a tuple where this optimizer has one (betas), a tensor learning rate kept."""
    restored: dict[str, Any] = {}
    for key, value in saved.items():
        here = group.get(key)
        if isinstance(here, Tensor):
            restored[key] = torch.full_like(here, value)
        else:
            restored[key] = tuple(value) if isinstance(here, tuple) else value
    return restored
