"""Residual statistics of all decoder layers in one forward pass, by our probes' own pieces."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.subjects import Subject
from probes.batch import Batch
from probes.norms import PassNorms
from probes.record import Record, Rows
from probes.session import Session
from probes.statistics import Summary, TokenPool, report_pools, stacked, summary

Inputs = Mapping[str, Tensor]


class LayerStatistics:
    """The full statistic set of the hidden states that leave each decoder layer."""

    def __init__(self, inputs: Inputs) -> None:
        self.batch = Batch(inputs, "input_ids")
        self.norms = PassNorms()
        self.shape = torch.Size()

    def look(self, hidden: Tensor) -> None:
        """Take the norms of the tokens that leave the next layer, [B, T, H]."""
        self.shape = hidden.shape
        self.norms.add(hidden)

    def pools(self) -> dict[int | None, TokenPool]:
        """The text tokens of every layer."""
        text = np.flatnonzero(self.batch.positions(self.shape).text.cpu().numpy())
        pools: dict[int | None, TokenPool] = {}
        for index, norms in enumerate(self.norms.read() or []):
            pools[index] = TokenPool()
            pools[index].add(norms, text)
        return pools

    def summary(self) -> Summary:
        """The same numbers as arrays, by layer."""
        return summary(stacked(list(self.pools().values())))

    def records(self) -> list[Record]:
        """Percentiles, medians, sinks and largest elements of the text tokens of every layer."""
        rows = Rows("magnitude", 0)
        report_pools(rows, "text", self.pools())
        return rows.records


def in_one_forward(subject: Subject, inputs: Inputs) -> list[Record]:
    """Open a session, watch all layers, run the model once, write the records."""
    statistics = LayerStatistics(inputs)
    with Session(subject.lm) as session:
        for layer in subject.backbone.layers:
            session.watch(layer, lambda call: statistics.look(call.result))
        session.forward(statistics.batch)
    return statistics.records()


def of_states(states: list[Tensor], inputs: Inputs) -> LayerStatistics:
    """The norms of hidden states that lie ready."""
    statistics = LayerStatistics(inputs)
    for state in states:
        statistics.look(state)
    return statistics


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
