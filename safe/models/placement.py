"""Where a module computes, which with accelerate's offloading is not where its weights lie."""

import torch
from torch import nn


def execution_device(module: nn.Module) -> torch.device:
    """Return the device that a module's forward runs on.

    An offloaded module's weights are on the meta device between its calls; accelerate's hook
    brings them, and the inputs, to its own device.
    """
    weight = next(module.parameters())
    if not weight.is_meta:
        return weight.device
    outer = getattr(module, "_hf_hook", None)
    for hook in getattr(outer, "hooks", (outer,)):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return weight.device
