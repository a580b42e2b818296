"""Parameters that lie on devices which this machine has not, for use inside a fake tensor mode."""

from collections.abc import Callable

import torch
from torch import nn


def place(model: nn.Module, device: Callable[[str], str]) -> None:
    """Put fake parameters and buffers where the real ones would lie; shared ones stay shared.

    Args:
        model: of real tensors.
        device: name of a parameter or buffer to its device.
    """
    made: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, value in module._parameters.items():
            if value is not None:
                fake = torch.empty_like(value, device=device(f"{path}.{name}"))
                new = nn.Parameter(fake, requires_grad=value.requires_grad)
                module._parameters[name] = made.setdefault(id(value), new)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device(f"{path}.{name}"))
