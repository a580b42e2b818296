"""The same step with another attention, and with compiled decoder layers, where one might pay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.speed.pairs import Ratio, Work, take_turns
from benchmarks.speed.training import Bench


def variations(bench: Bench, pairs: int) -> list[Ratio]:
    """Each way of taking our step against the step as it is taken."""
    ways = {
        "attention that keeps its weights (eager)": _within(bench, _eager),
        "decoder layers compiled (torch.compile)": _within(bench, _compiled),
    }
    table = f"{bench.subject.name}, our step as it is"
    return take_turns(table, bench.ours, ways, pairs=pairs, device=bench.subject.device)


def _within(bench: Bench, setting: Callable[[Bench], Iterator[None]]) -> Work:
    def work() -> None:
        with contextmanager(setting)(bench):
            bench.ours()

    return work


def _eager(bench: Bench) -> Iterator[None]:
    model = bench.model.backbone.model
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _compiled(bench: Bench) -> Iterator[None]:
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
