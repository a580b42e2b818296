"""Say whether each gate is open, and whether it is able to learn.

Records of component ``gate`` by fusion layer (a gate with several elements gives its mean, and
``raw_min`` and ``raw_max``): ``raw``; ``value`` after transform and clamp; ``effective``, the value
times the outer gate and its warm-up; ``slope``, d value / d raw (0: no gradient can pass);
``at_edge``, share of elements on or outside an end of the clamp; ``outside_clamp``; ``trainable``;
with an optimizer ``in_optimizer``, ``lr``, ``weight_decay``; with labelled batches, or a training
step's gradients, ``gradient_absent`` and, unless absent, ``gradient``; with start values ``moved``.
Layer None has ``outer_gate``, and in a training ``outer_gate_at_end``, what it will be at the last
step.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from probes.context import Context
from probes.knobs import Gate
from probes.optimizers import places
from probes.record import Record, Rows

Gradients = Mapping[int, Tensor | None]


def measure(context: Context, *, gradients: Gradients | None = None) -> list[Record]:
    """Read the gates and their gradients.

    Args:
        context: with labelled batches the mean gradient over them is taken here, in eval mode.
        gradients: those that a training step has taken anyway, by layer; None for no ``.grad``.
    """
    rows = context.rows("gates")
    outer = context.path.outer_gate
    if context.path.spec.outer_gate is not None:
        rows.add("gate", "outer_gate", outer, "factor")
    if gradients is None and context.batches and context.has_loss:
        gradients = _gradients(context)
    for layer, gate in context.path.gates.items():
        _value(rows, gate, outer)
        _training(rows, gate, context)
        if gradients is not None:
            gradient = gradients[layer]
            rows.add("gate", "gradient_absent", gradient is None, "flag", layer)
            if gradient is not None:
                rows.add("gate", "gradient", gradient.mean(), "nats/token", layer)
    return rows.records


def _value(rows: Rows, gate: Gate, outer: float) -> None:
    raw, value = gate.raw(), gate.values()
    rows.add("gate", "raw", raw.mean(), "factor", gate.layer)
    if raw.numel() > 1:
        rows.add("gate", "raw_min", raw.min(), "factor", gate.layer)
        rows.add("gate", "raw_max", raw.max(), "factor", gate.layer)
    rows.add("gate", "value", value.mean(), "factor", gate.layer)
    rows.add("gate", "effective", outer * value.mean(), "factor", gate.layer)
    rows.add("gate", "slope", gate.slope().mean(), "ratio", gate.layer)
    low = -torch.inf if gate.low is None else gate.low
    high = torch.inf if gate.high is None else gate.high
    if gate.low is not None or gate.high is not None:
        inner = gate.transformed()
        at_edge, outside = (inner <= low) | (inner >= high), (inner < low) | (inner > high)
        rows.add("gate", "at_edge", at_edge.double().mean(), "share", gate.layer)
        rows.add("gate", "outside_clamp", outside.double().mean(), "share", gate.layer)


def _training(rows: Rows, gate: Gate, context: Context) -> None:
    rows.add("gate", "trainable", gate.tensor.requires_grad, "flag", gate.layer)
    if context.optimizer is not None:
        place = places(context.optimizer).get(id(gate.tensor))
        rows.add("gate", "in_optimizer", place is not None, "flag", gate.layer)
        if place is not None:
            rows.add("gate", "lr", place.lr, "lr", gate.layer)
            rows.add("gate", "weight_decay", place.weight_decay, "lr", gate.layer)
    start = context.start.get(gate.name)
    if start is not None:
        moved = (gate.raw() - start.detach().double().cpu().reshape(-1)).abs().max()
        rows.add("gate", "moved", moved, "factor", gate.layer)


def _gradients(context: Context) -> Gradients:
    """Mean gradient of each gate over the batches; None where backward left ``.grad`` None."""
    with context.session() as session:
        for batch in context.batches:
            loss = context.loss_fn(session.forward(batch, grad=True), batch)
            if loss.requires_grad:
                session.backward(loss / len(context.batches))
        return {layer: gradient_of(gate.tensor) for layer, gate in context.path.gates.items()}


def gradient_of(parameter: Tensor) -> Tensor | None:
    """A copy of a parameter's ``.grad``, float64 on the host."""
    return None if parameter.grad is None else parameter.grad.double().cpu()
