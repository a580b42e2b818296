"""Say which part of the signal path gets a gradient, and whether an optimizer step moves it.

Gradients are those of ``loss_fn`` (nats/token), taken by the probe itself in training mode: before
clipping, and divided by ``loss_scale``. Every batch counts alike, as the micro-batches of one
accumulation window do.

Every component that the signal path declares has a ledger entry (fusion, gate and decoder by
layer), and so has every parameter, as component ``<component>:<parameter>``. A shared parameter
is entered once, under its owner.

- All: ``state``, a code of :class:`~probes.ledger.State`; ``trainable``, tensors.
- Trainable parameters, and components that have some: ``norm``, L2 of the mean gradient (what one
  accumulated step uses); ``norm_mean`` and, from two batches on, ``norm_std`` of the batches' own
  norms; ``snr``, ||mean|| / sqrt(sum of the elements' variances over batches) (pure noise: about
  1/sqrt(batches)); ``weight_norm``; ``gradient_to_weight``; ``update_norm``, how far one step of
  the optimizer moves it; ``update_to_weight``. Ratios exist where the weight is not zero.
- Trainable parameters: ``silent_batches``, share of batches with no or zero gradient; ``moved``,
  whether the step changed a bit; where the gradient is None or zero ``explained``, a code of
  :class:`~probes.ledger.Reason`.
- Components: ``none``, ``zero``, ``finite``, ``nonfinite``, how many trainable tensors are in that
  state; ``moved_share`` of these tensors; ``deadlock``, 1 when zeros in it wait for each other;
  ``downhill``, cosine between minus the gradient and a step of the given optimizer that forgets
  what it remembers and its weight decay (1: SGD, below 0: uphill).
- Whole components (no layer) of float32 and float64 models, where finite differences of the first
  batch's loss can tell: ``slope``, measured slope along the gradient / its norm (1: right, 0: not
  the gradient of this loss, -1: reversed); ``slope_mismatch``, measured minus expected slope along
  random directions, RMS relative to the expected ones (0: right).
- ``model``: ``loss`` (mean, nats/token), ``norm`` (of the whole mean gradient), ``batches``,
  ``frozen_moved`` (frozen tensors that the step changed), ``optimizer_given`` (0: the step was one
  of a plain AdamW, lr 1e-3, over all trainables, so only ``moved`` means something).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from probes.batch import Batch
from probes.cold_start import ColdStart
from probes.components import Owned, owned_parameters
from probes.context import Context
from probes.errors import ProbeError
from probes.gradient_tally import GradientTally
from probes.ledger import Reason, State
from probes.norms import precise_norm
from probes.record import Record, Rows
from probes.resolved_path import ResolvedPath
from probes.session import Mode, Session
from probes.slopes import Slope, fine_enough, slopes
from probes.trial_step import fingerprint, trial_step

Place = tuple[str, int | None]
_BEHIND_OUTER_GATE = ("encoder", "projector", "fusion", "gate")
_COUNTS = {
    "none": State.NONE, "zero": State.ZERO, "finite": State.FINITE, "nonfinite": State.NONFINITE
}  # fmt: skip


def measure(
    context: Context, *, loss_scale: float = 1.0, clip_norm: float | None = None
) -> list[Record]:
    """Take gradients of all batches, one trial step, and the reasons of missing gradients.

    Args:
        context: needs batches and a loss; the trial step is one of its optimizer.
        loss_scale: the loss is multiplied by it before backward and every gradient divided by it,
            so that float16 gradients do not vanish: give ``GradScaler.get_scale()``.
        clip_norm: the trial step clips the whole gradient to this norm, as the training does;
            gradients are recorded unclipped.

    Raises:
        ProbeError: no batches, no loss, or a model without values (meta device).
    """
    rows = context.rows("gradflow")
    batches = context.need_batches("gradflow")
    found = owned_parameters(context.path)
    if any(o.parameter.is_meta and o.parameter.requires_grad for o in found):
        raise ProbeError("the gradflow probe needs a model with values, not one on the meta device")
    entries = [_Entry(owned) for owned in found]
    # what backward does in training: checkpointing and dropout are on
    mode: Mode = "as_found" if context.path.model.training else "train"
    with context.session(mode) as session:
        run = _Run(context, session, entries, loss_scale)
        losses = [run.take(batch) for batch in batches]
        frozen_moved = run.step(clip_norm)
        run.explain()
        checked = run.slopes(batches[0])
    places = _places(context.path, entries)
    for (component, layer), members in places.items():
        _report_component(rows, component, layer, members)
    for component, slope in checked.items():
        if slope.along_gradient is not None:
            rows.add(component, "slope", slope.along_gradient, "ratio")
        if slope.random_mismatch is not None:
            rows.add(component, "slope_mismatch", slope.random_mismatch, "ratio")
    for entry in entries:
        _report_parameter(rows, entry)
    rows.add("model", "loss", sum(losses) / len(losses), "nats/token")
    rows.add("model", "norm", _norm(e.norm for e in entries), "L2")
    rows.add("model", "batches", len(batches), "batches")
    rows.add("model", "frozen_moved", frozen_moved, "tensors")
    rows.add("model", "optimizer_given", context.optimizer is not None, "flag")
    return rows.records


class _Fresh(NamedTuple):
    """One step by the gradient alone."""

    gradient: float
    """L2 of the gradient that it was made with."""
    update: float
    """L2 of the step."""
    downhill: float
    """Minus their inner product."""


@dataclass(eq=False)
class _Entry:
    """The ledger's line for one parameter."""

    owned: Owned
    tally: GradientTally = field(default_factory=GradientTally)
    norm: float = 0.0
    update_norm: float = 0.0
    fresh: "_Fresh | None" = None
    reason: Reason = Reason.UNKNOWN

    def __post_init__(self) -> None:
        self.trainable = self.owned.parameter.requires_grad
        self.weight_norm = precise_norm(self.owned.parameter) if self.trainable else 0.0

    @property
    def state(self) -> State:
        return self.tally.state if self.trainable else State.NONE


@dataclass(eq=False)
class _Run:
    """The measurements, in their order."""

    context: Context
    session: Session
    entries: list[_Entry]
    loss_scale: float

    def __post_init__(self) -> None:
        self.trainable = [e for e in self.entries if e.trainable]

    def take(self, batch: Batch) -> float:
        """Backward of one batch into the tallies; its loss."""
        loss = self._backward(batch)
        for entry in self.trainable:
            parameter = entry.owned.parameter
            entry.tally.add(parameter.grad, self.loss_scale)
            parameter.grad = None
        return loss

    def _backward(self, batch: Batch) -> float:
        loss = self.context.loss_fn(self.session.forward(batch, grad=True), batch)
        if loss.requires_grad:
            wide = torch.promote_types(loss.dtype, torch.float32)
            self.session.backward(loss.to(wide) * self.loss_scale)
        return float(loss.detach())

    def step(self, clip_norm: float | None) -> int:
        """Measure one optimizer step on the mean gradients; how many frozen tensors it changed."""
        for entry in self.trainable:
            entry.norm = 0.0 if entry.tally.mean is None else precise_norm(entry.tally.mean)
        parameters = [e.owned.parameter for e in self.trainable]
        if not parameters:
            return 0
        clip = 1.0
        if clip_norm is not None:
            clip = min(1.0, clip_norm / (_norm(e.norm for e in self.trainable) + 1e-6))
        for entry in self.trainable:
            parameter, mean = entry.owned.parameter, entry.tally.take_mean()
            parameter.grad = None if mean is None else mean.mul_(clip).to(parameter.dtype)
        if self.context.optimizer is not None:
            self._step_afresh(self.context.optimizer, parameters)
        optimizer = self.context.optimizer or AdamW(parameters, lr=1e-3, weight_decay=0.0)
        others = (e.owned.parameter for e in self.entries if not e.trainable)
        frozen = [parameter for parameter in others if not parameter.is_meta]
        prints = [fingerprint(p) for p in frozen]
        with torch.no_grad(), trial_step(optimizer, parameters) as before:
            for entry in self.trainable:
                entry.update_norm = precise_norm(_moved(entry.owned.parameter, before))
            changed = sum(fingerprint(p) != old for p, old in zip(frozen, prints, strict=True))
        for parameter in parameters:
            parameter.grad = None
        return changed

    def _step_afresh(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        """Does a step without momentum go downhill? Momentum may point elsewhere for good."""
        try:
            with torch.no_grad(), trial_step(optimizer, parameters, fresh=True) as before:
                for entry in self.trainable:
                    gradient = entry.owned.parameter.grad
                    if gradient is not None:
                        moved = _moved(entry.owned.parameter, before)
                        update = precise_norm(moved)
                        # in place, and float64 over the rows only: with a copy for the product and
                        # one of it in float64, this line was the memory that a training needs
                        rows = moved.mul_(gradient).sum(-1)
                        inner = float(rows.sum(dtype=torch.float64))
                        entry.fresh = _Fresh(precise_norm(gradient), update, -inner)
        except Exception:  # an optimizer that cannot step without its memory is not measured
            for entry in self.trainable:
                entry.fresh = None

    def explain(self) -> None:
        """Find out why trainable parameters have no gradient."""
        missing = [e for e in self.trainable if e.state in (State.NONE, State.ZERO)]
        if self.context.path.outer_gate == 0:
            for entry in missing:
                if entry.owned.component in _BEHIND_OUTER_GATE:
                    entry.reason = Reason.OUTER_GATE
            return
        zero = {id(e.owned.parameter): e for e in missing if e.state is State.ZERO}
        if not zero:
            return
        parameters = [e.owned.parameter for e in self.trainable]
        awake = {id(p) for p in parameters} - {id(e.owned.parameter) for e in missing}
        held_still = [
            e.owned.parameter
            for e in self.entries
            if not e.trainable and e.owned.component in ("projector", "fusion")
        ]
        experiment = ColdStart(
            self.context.path, self.session, parameters, held_still, awake, self._with_gradient
        )
        for key, reason in experiment.explain(zero).items():
            zero[key].reason = reason

    def slopes(self, batch: Batch) -> dict[str, Slope]:
        """Check the gradient of one batch by finite differences, by component."""
        if not fine_enough(self.context.path.model, self.session.device):
            return {}
        parts: dict[str, list[nn.Parameter]] = {}
        for entry in self.trainable:
            parts.setdefault(entry.owned.component, []).append(entry.owned.parameter)

        def loss(gradient: bool) -> float:
            value = self.context.loss_fn(self.session.forward(batch, grad=gradient), batch)
            if gradient and value.requires_grad:
                self.session.backward(value)
            return float(value.detach())

        return slopes(parts, loss)

    def _with_gradient(self) -> set[int]:
        """Run all batches again; the ``id`` of the parameters whose gradient is not zero now."""
        for batch in self.context.batches:
            self._backward(batch)
        found = set()
        for entry in self.trainable:
            parameter = entry.owned.parameter
            if parameter.grad is not None and bool(parameter.grad.to_dense().any()):
                found.add(id(parameter))
            parameter.grad = None
        return found


def _places(path: ResolvedPath, entries: list[_Entry]) -> dict[Place, list[_Entry]]:
    """Every declared component by layer, also those without parameters, and whatever else owns."""
    words = {"head": "lm_head"}
    places: dict[Place, list[_Entry]] = {(words.get(n, n), None): [] for n in path.names}
    places |= {("decoder", i): [] for i in path.layers}
    places |= {("fusion", i): [] for i in path.fusion}
    places |= {("gate", i): [] for i in path.gates}
    for entry in entries:
        place = (entry.owned.component, entry.owned.layer)
        places.setdefault(place, []).append(entry)
    for (component, layer), members in places.items():
        if not members and layer is None:  # tied weights: here too, but another's own
            members.extend(e for e in entries if component in e.owned.also_in)
    return places


def _report_component(rows: Rows, component: str, layer: int | None, members: list[_Entry]) -> None:
    def add(statistic: str, value: float, unit: str) -> None:
        rows.add(component, statistic, value, unit, layer)

    trainable = [e for e in members if e.trainable]
    nothing = State.NONE if members else State.ABSENT
    add("state", max((e.state for e in trainable), default=nothing), "state")
    add("trainable", len(trainable), "tensors")
    if not trainable:
        return
    for name, state in _COUNTS.items():
        add(name, sum(e.state is state for e in trainable), "tensors")
    batches = len(trainable[0].tally.norms)
    norms = [_norm(e.tally.norms[i] for e in trainable) for i in range(batches)]
    scatter = sum(e.tally.scatter for e in trainable)
    _report_norms(
        rows, component, layer, _norm(e.norm for e in trainable), norms, scatter,
        _norm(e.weight_norm for e in trainable), _norm(e.update_norm for e in trainable),
    )  # fmt: skip
    moved = sum(e.update_norm != 0 for e in trainable)
    add("moved_share", moved / len(trainable), "share")
    fresh = [e.fresh for e in trainable if e.fresh is not None]
    lengths = _norm(f.gradient for f in fresh) * _norm(f.update for f in fresh)
    if lengths and math.isfinite(lengths):
        add("downhill", sum(f.downhill for f in fresh) / lengths, "cosine")
    add("deadlock", any(e.reason is Reason.DEADLOCK for e in trainable), "flag")


def _report_parameter(rows: Rows, entry: _Entry) -> None:
    component, layer = f"{entry.owned.component}:{entry.owned.name}", entry.owned.layer
    rows.add(component, "state", entry.state, "state", layer)
    rows.add(component, "trainable", entry.trainable, "tensors", layer)
    if not entry.trainable:
        return
    tally = entry.tally
    _report_norms(
        rows, component, layer, entry.norm, tally.norms, tally.scatter, entry.weight_norm,
        entry.update_norm,
    )  # fmt: skip
    rows.add(component, "silent_batches", tally.silent, "share", layer)
    rows.add(component, "moved", entry.update_norm != 0, "flag", layer)
    if entry.state in (State.NONE, State.ZERO):
        rows.add(component, "explained", entry.reason, "reason", layer)


def _report_norms(
    rows: Rows, component: str, layer: int | None, norm: float, norms: list[float],
    scatter: float, weight: float, update: float,
) -> None:  # fmt: skip
    def add(statistic: str, value: float, unit: str) -> None:
        rows.add(component, statistic, value, unit, layer)

    mean = sum(norms) / len(norms)
    add("norm", norm, "L2")
    add("norm_mean", mean, "L2")
    if len(norms) > 1:
        spread = math.sqrt(sum((n - mean) * (n - mean) for n in norms) / (len(norms) - 1))
        add("norm_std", spread, "L2")
        noise = math.sqrt(scatter / (len(norms) - 1))
        if noise or norm:
            add("snr", norm / noise if noise else math.inf, "ratio")
    add("weight_norm", weight, "L2")
    add("update_norm", update, "L2")
    if weight:
        add("gradient_to_weight", norm / weight, "ratio")
        add("update_to_weight", update / weight, "ratio")


def _moved(parameter: nn.Parameter, before: dict[int, Tensor]) -> Tensor:
    """How far a parameter has moved, at least in float32."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.detach().to(wide) - before[id(parameter)].to(wide)


def _norm(norms: Iterable[float]) -> float:
    """L2 norm of parts whose norms are given; NaN or infinite when a part is."""
    return math.sqrt(sum(norm * norm for norm in norms))
