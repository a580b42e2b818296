"""A measuring session: hooks and forward passes that leave the model exactly as it was found."""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probes import snapshot
from probes.batch import Batch

Mode = Literal["eval", "train", "as_found"]
_CASTING = ("cpu", "cuda")
"""Kinds of devices that autocast knows."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a watched module; valid only while the watcher looks at it."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    """What the module returned; None before the call."""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, positional ones first."""
        return [x for x in (*self.args, *self.kwargs.values()) if isinstance(x, Tensor)]

    @property
    def hidden(self) -> Tensor:
        """The hidden states given to a decoder layer: ``hidden_states=``, or the first tensor."""
        named = self.kwargs.get("hidden_states")
        return named if isinstance(named, Tensor) else self.tensors[0]

    @property
    def result(self) -> Tensor:
        """The tensor that the module returned, or the first of a tuple, list or model output.

        Raises:
            TypeError: it returned no tensor.
        """
        return first_tensor(self.output)


Watcher = Callable[[Call], None]


class Session:
    """Context manager around all measuring of one probe.

    On leaving, also after an exception or Ctrl-C: its hooks are removed by their own handles (the
    user's stay), and training flags, ``requires_grad``, gradients, buffers and the random
    generators are as on entry. Inside, gradients start as None, and what the user runs when a
    gradient has arrived (an optimizer in the backward pass) rests. Autocast is the caller's.
    Compiled parts run eagerly, because compiled code would not call the hooks.

    Args:
        model: the module to call (``ResolvedPath.model``).
        mode: ``eval`` (no dropout; the default), ``train``, or ``as_found``.
    """

    def __init__(self, model: nn.Module, mode: Mode = "eval") -> None:
        self.model, self.mode = model, mode
        self.forwards = 0
        """How many forward passes were made."""
        self._stack = ExitStack()
        self._in_backward = False

    def __enter__(self) -> "Session":
        modules = snapshot.all_modules(self.model)
        parameters = snapshot.all_parameters(modules)
        with ExitStack() as stack:
            stack.callback(snapshot.keep_random_state())
            stack.callback(snapshot.keep_training_flags(modules))
            stack.callback(snapshot.keep_buffers(modules))
            stack.callback(snapshot.keep_gradients(parameters))
            stack.callback(snapshot.silence_gradient_hooks(parameters))
            for parameter in parameters:
                parameter.grad = None
            if self.mode != "as_found":
                wanted = self.mode == "train"
                if any(module.training != wanted for module in modules):
                    self.model.train(wanted)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def watch(self, module: nn.Module, look: Watcher, *, first: bool = False) -> None:
        """Call ``look`` after every forward call of ``module``.

        Recomputation of checkpointed activations during :meth:`backward` is not looked at again.
        ``look`` runs without gradients and without autocast; keep numbers, not tensors.

        Args:
            module: what to watch.
            look: receives the :class:`Call`.
            first: look before the module's other forward hooks change the output, not after.
        """

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._look(look, Call(module, args, kwargs, output))

        handle = module.register_forward_hook(hook, with_kwargs=True, prepend=first)
        self._stack.callback(handle.remove)

    def watch_input(self, module: nn.Module, look: Watcher) -> None:
        """Call ``look`` before every forward call of ``module``; ``call.output`` is None."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._look(look, Call(module, args, kwargs, None))

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        self._stack.callback(handle.remove)

    def replace_output(self, module: nn.Module, change: Callable[[Call], Any]) -> None:
        """Let the output of ``module`` be what ``change`` returns (gradients flow through it)."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return change(Call(module, args, kwargs, output))

        handle = module.register_forward_hook(hook, with_kwargs=True)
        self._stack.callback(handle.remove)

    def forward(self, batch: Batch, *, grad: bool = False) -> Any:
        """The model's output for ``batch``, moved to the model's device.

        Args:
            batch: inputs.
            grad: build the graph for :meth:`backward`.
        """
        self.forwards += 1
        # the caller's autocast keeps rounded copies of weights, and probes change weights
        torch.clear_autocast_cache()
        with _eagerly(), torch.enable_grad() if grad else torch.no_grad():
            return self.model(**batch.to(self.device).inputs)

    def generate(self, batch: Batch, **options: Any) -> Any:
        """What the model's own ``generate`` returns for ``batch`` and further keywords."""
        call: Any = self.model
        torch.clear_autocast_cache()  # as in forward()
        with _eagerly(), torch.no_grad():
            return call.generate(**batch.to(self.device).inputs, **options)

    @property
    def device(self) -> torch.device:
        """Where the first parameter is that is not offloaded, and batches are moved to."""
        here = (p.device for p in self.model.parameters() if not p.is_meta)
        return next(here, torch.device("cpu"))

    def backward(self, loss: Tensor) -> None:
        """Backpropagate into ``.grad``; the gradients of earlier calls are added to, as usual."""
        self._in_backward = True
        try:
            loss.backward()
        finally:
            self._in_backward = False
            torch.clear_autocast_cache()  # the graph is gone, and no copy is used again

    def keep_values(self, tensors: Iterable[Tensor]) -> None:
        """Put the values of these tensors back on leaving (for a probe that changes them)."""
        self._stack.callback(snapshot.keep_values(tensors))

    def _look(self, look: Watcher, call: Call) -> None:
        if self._in_backward:
            return
        with ExitStack() as stack, torch.no_grad():
            for kind in _CASTING:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            look(call)


def _eagerly() -> AbstractContextManager[Any]:
    """Run compiled parts eagerly, if this process compiled any (the import costs seconds)."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def first_tensor(output: Any) -> Tensor:
    """The tensor itself, or the first of a tuple, list or mapping.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(f"a watched module returned {type(output).__name__}, which has no tensor first")
