"""Residual statistics of all decoder layers in one forward pass, by our probes' own pieces."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.speed.subjects import Subject
from probes.batch import Batch
from probes.record import Record, Rows
from probes.session import Call, Session
from probes.statistics import TokenPool, token_norms

Inputs = Mapping[str, Tensor]


class LayerStatistics:
    """The full statistic set of the hidden states that leave each decoder layer."""

    def __init__(self, count: int, inputs: Inputs) -> None:
        self.batch = Batch(inputs, "input_ids")
        self.pools = [TokenPool() for _ in range(count)]
        self.text: NDArray[np.bool_] | None = None

    def look(self, index: int, hidden: Tensor) -> None:
        """Take the norms of the text tokens that leave layer ``index``, [B, T, H]."""
        if self.text is None:
            self.text = self.batch.positions(hidden.shape).text.numpy()
        self.pools[index].add(token_norms(hidden), self.text)

    def records(self) -> list[Record]:
        """Percentiles, medians, sinks and largest elements of every layer."""
        rows = Rows("magnitude", 0)
        for index, pool in enumerate(self.pools):
            pool.report(rows, "text", index)
        return rows.records


def in_one_forward(subject: Subject, inputs: Inputs) -> list[Record]:
    """Open a session, watch all layers, run the model once, write the records."""
    layers = subject.backbone.layers
    statistics = LayerStatistics(len(layers), inputs)

    def look(index: int, call: Call) -> None:
        statistics.look(index, call.result)

    with Session(subject.lm) as session:
        for index, layer in enumerate(layers):
            session.watch(layer, partial(look, index))
        session.forward(statistics.batch)
    return statistics.records()


def of_states(states: list[Tensor], inputs: Inputs) -> list[Record]:
    """The same work on hidden states that lie ready: nothing but the statistics."""
    statistics = LayerStatistics(len(states), inputs)
    for index, state in enumerate(states):
        statistics.look(index, state)
    return statistics.records()


def states_of(subject: Subject, inputs: Inputs) -> list[Tensor]:
    """The hidden states that leave each layer."""
    states: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _module, _args, output: states.append(output))
        for layer in subject.backbone.layers
    ]
    with torch.no_grad():
        subject.lm(**inputs)
    for handle in handles:
        handle.remove()
    return states
