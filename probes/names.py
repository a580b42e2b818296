"""Names of a model's parts as its author wrote them, whatever wraps it now.

DistributedDataParallel, DataParallel, torch.compile, activation-checkpoint wrappers and PEFT put
a prefix before the names below them; here these prefixes are left out, so one signal path fits
the bare and the wrapped model.
"""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from probes.errors import PathError

_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "PeftModel": "base_model",
    "BaseTuner": "model",
}
"""Class name of a wrapper to the name under which it holds the wrapped module."""
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
_UNSUPPORTED = {
    "FullyShardedDataParallel": "its parameters are split over processes; probe before sharding",
    "FSDPModule": "its trainable parameters are split over processes; probe before sharding",
    "ScriptModule": "hooks do not fire inside TorchScript; probe the original module",
}


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its unwrapped name; a module reached by two names is under both.

    Raises:
        PathError: the model, or a part of it, cannot be measured (FSDP, TorchScript).
    """
    return dict(_walk(model, ""))


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its unwrapped name; a shared parameter is under each of its names."""
    return {
        _join(name, own): parameter
        for name, module in _walk(model, "")
        for own, parameter in module._parameters.items()
        if parameter is not None
    }


def buffers_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Every buffer by its unwrapped name."""
    return {
        _join(name, own): buffer
        for name, module in _walk(model, "")
        for own, buffer in module._buffers.items()
        if buffer is not None
    }


def find(name: str, known: Iterable[str], what: str) -> str:
    """Return ``name`` as it is known, with the prefix of a wrapper taken off if necessary.

    Args:
        name: what the signal path says.
        known: all names of the model.
        what: the part of the signal path, for the error.

    Raises:
        PathError: nothing has this name; near misses are listed.
    """
    names = set(known)
    for candidate in (name, _PREFIX.sub("", name)):
        if candidate in names:
            return candidate
    raise PathError(f"{what}: nothing in the model is called {name!r}{near_misses(name, names)}")


def match(pattern: str, known: Iterable[str]) -> dict[int, str]:
    """Names that fit a pattern, by the number in the place of ``*`` or ``{layer}``, ascending.

    ``*`` and ``{layer}`` stand for a whole number; several such places must agree.
    """
    text = re.escape(_PREFIX.sub("", pattern)).replace(r"\*", r"\{layer\}")
    text = text.replace(r"\{layer\}", r"(?P<layer>\d+)", 1).replace(r"\{layer\}", r"(?P=layer)")
    found = {int(hit["layer"]): name for name in known if (hit := re.fullmatch(text, name))}
    return dict(sorted(found.items()))


def near_misses(name: str, known: Iterable[str]) -> str:
    """The end of an error message: up to three known names like ``name``, or nothing."""
    names = sorted({re.sub(r"\d+", "{layer}", n) if "{layer}" in name else n for n in known if n})
    last = name.rpartition(".")[2]
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    close += [n for n in names if n.rpartition(".")[2] == last and n not in close]
    return f"; similar names: {', '.join(close[:3])}" if close else ""


def runnable(model: nn.Module) -> nn.Module:
    """The module to call: without data-parallel and compile wrappers, but with PEFT's.

    PEFT's own ``forward`` may add prompts, so it has to run; DistributedDataParallel's would wait
    for the other processes.
    """
    while (key := _wrapper_key(model)) in ("module", "_orig_mod"):
        model = model.get_submodule(str(key))
    return model


def _walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module); a wrapper and what it wraps share a name, the wrapped one is last."""
    _refuse(module, name)
    yield name, module
    wrapped = _wrapper_key(module)
    for key, child in module._modules.items():
        if child is not None:
            yield from _walk(child, name if key == wrapped else _join(name, key))


def _wrapper_key(module: nn.Module) -> str | None:
    for kind in type(module).__mro__:
        key = _WRAPPERS.get(kind.__name__)
        if key is not None and key in module._modules:
            return key
    return None


def _refuse(module: nn.Module, name: str) -> None:
    for kind in type(module).__mro__:
        reason = _UNSUPPORTED.get(kind.__name__)
        if reason and not (kind.__name__ == "FSDPModule" and _frozen(module)):
            raise PathError(f"{name or 'the model'} is a {kind.__name__}: {reason}")


def _frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def split_module(model: nn.Module) -> str | None:
    """The name of a part whose parameters FSDP2 splits over processes; None when there is none."""
    return next((name or "the model" for name, _ in _split_modules(model)), None)


def split_again(model: nn.Module) -> None:
    """Let every part that FSDP2 has put together go, so that its parameters are those that last."""
    for _, module in _split_modules(model):
        module.reshard()


def _split_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            yield name, module


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
