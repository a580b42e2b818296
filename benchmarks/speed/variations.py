"""Our step with one part of it done in another way: what pays, and what would not."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from benchmarks.speed.pairs import Ratio, Work, take_turns
from benchmarks.speed.training import Bench, Window
from safe.models.backbones import hidden_of

Setting = Callable[[Bench], Iterator[None]]


def variations(bench: Bench, pairs: int) -> list[Ratio]:
    """Each way of taking our step against the step as it is taken."""
    kept = entering(bench)
    ways = {
        "attention that keeps its weights (eager)": _within(bench, eager),
        "frozen layers compiled (torch.compile)": _within(bench, compiled),
        "AdamW tensor by tensor": _within(bench, looped_optimizer),
        "what enters the first fusion layer, kept": _within(bench, lambda b: from_kept(b, kept)),
        "micro-batches of half the size": _split(bench, 2),
        "one micro-batch": _split(bench, 0),
    }  # fmt: skip
    table = f"{bench.subject.name}, our step as it is"
    return take_turns(table, bench.ours, ways, pairs=pairs, device=bench.subject.device)


def _within(bench: Bench, setting: Setting) -> Work:
    def work() -> None:
        with contextmanager(setting)(bench):
            bench.ours()

    return work


def eager(bench: Bench) -> Iterator[None]:
    """Attention as a product of matrices."""
    model = bench.model.backbone.model
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def compiled(bench: Bench) -> Iterator[None]:
    """The frozen layers without fusion, by what torch has compiled for them the first time."""
    fused = bench.model.fusion.blocks()
    layers = [layer for index, layer in bench.model.layers.items() if index not in fused]
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # torch has no word for taking it back


def looped_optimizer(bench: Bench) -> Iterator[None]:
    """The optimizer's own arithmetic, not fused over tensors."""
    groups = bench.trainer.optimizer.param_groups
    usual = [(group["fused"], group["foreach"]) for group in groups]
    for group in groups:
        group["fused"], group["foreach"] = False, False
    try:
        yield
    finally:
        for group, (fused, foreach) in zip(groups, usual, strict=True):
            group["fused"], group["foreach"] = fused, foreach


def from_kept(bench: Bench, kept: list[Tensor]) -> Iterator[None]:
    """What enters the first fusion layer, from memory and not computed."""
    first = min(bench.model.fusion.blocks())
    queue = iter(kept)
    with ExitStack() as stack:
        for index, layer in bench.model.layers.items():
            if index < first:
                stack.callback(setattr, layer, "forward", layer.forward)
                layer.forward = lambda hidden, *_args, **_options: hidden

        def feed(_layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (next(queue), *args[1:])

        stack.callback(bench.model.layers[first].register_forward_pre_hook(feed).remove)
        yield


def entering(bench: Bench) -> list[Tensor]:
    """What enters the first fusion layer, for each micro-batch of the step."""
    kept: list[Tensor] = []
    below = bench.model.layers[min(bench.model.fusion.blocks()) - 1]
    hook = below.register_forward_hook(lambda _m, _a, out: kept.append(hidden_of(out).detach()))
    bench.ours()
    hook.remove()
    return kept


def _split(bench: Bench, parts: int) -> Work:
    """The same clips, each micro-batch in so many parts; 0: all in one."""
    window: Window = [[i for batch in bench.window for i in batch]]
    if parts:
        window = [batch[k::parts] for batch in bench.window for k in range(parts)]
    return lambda: bench.trainer.take_step(window)
