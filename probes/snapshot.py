"""Remembering the state of a model and of the random generators, and putting it back.

Each function takes a snapshot and returns the function that restores it. Nothing large is copied:
gradients are set aside by reference, and parameters are copied only on request.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

Restore = Callable[[], None]


def all_modules(model: nn.Module) -> list[nn.Module]:
    """Every module once, as ``model.modules()``, but without making up their names."""
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting += [child for child in module._modules.values() if child is not None]
    return list(found)


def all_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Every parameter of these modules once."""
    return list({p: None for m in modules for p in m._parameters.values() if p is not None})


def keep_training_flags(modules: Iterable[nn.Module]) -> Restore:
    """Remember each module's ``training`` flag; they may differ from part to part."""
    flags = [(module, module.training) for module in modules]

    def restore() -> None:
        for module, training in flags:
            if module.training != training:  # setting an attribute of a module is slow
                module.training = training

    return restore


def keep_gradients(parameters: Iterable[nn.Parameter]) -> Restore:
    """Remember ``requires_grad`` and the gradients themselves (by reference) of each parameter."""
    found = [(p, p.requires_grad, p.grad) for p in parameters]

    def restore() -> None:
        for parameter, requires_grad, gradient in found:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            parameter.grad = gradient

    return restore


def silence_gradient_hooks(parameters: Iterable[nn.Parameter]) -> Restore:
    """Take away what the user runs when a gradient has arrived, above all steps of an optimizer.

    (``register_post_accumulate_grad_hook``; hooks that change a gradient are part of the model.)
    """
    found = [(p, hooks) for p in parameters if (hooks := p._post_accumulate_grad_hooks)]
    for parameter, _ in found:
        parameter._post_accumulate_grad_hooks = OrderedDict()

    def restore() -> None:
        for parameter, hooks in found:
            parameter._post_accumulate_grad_hooks = hooks

    return restore


def keep_random_state() -> Restore:
    """Remember the generators of Python, NumPy and torch (CPU and every CUDA device in use)."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

    return restore


def keep_buffers(modules: Iterable[nn.Module]) -> Restore:
    """Remember all buffers, by object and by value (batch statistics, rotary tables, counters)."""
    found = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]

    def restore() -> None:
        for module, name, buffer, value in found:
            module._buffers[name] = buffer
            if buffer is not None and value is not None:
                buffer.data.copy_(value)

    return restore


def keep_values(tensors: Iterable[Tensor]) -> Restore:
    """Copy tensors (parameters about to be stepped) and put the values back bit for bit."""
    found = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def restore() -> None:
        for tensor, value in found:
            tensor.data.copy_(value)

    return restore
