"""Which module cancels a dial: its input follows, its output does not."""

import math
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from probes.batch import Batch
from probes.dials import Dial
from probes.names import modules_by_name
from probes.norms import precise_norm
from probes.resolved_path import ResolvedPath
from probes.session import Call, Session

FAR = (60.0, 10.0, 3.0, 1.7, 0.6)
"""Factors, best first: far away a normalisation still holds, where a bias that only dominates for
now gives way; a clamp may leave only the nearer ones."""
_FOLLOWS, _CANCELLED = 0.5, 0.1


@dataclass(frozen=True)
class Cancelling:
    """The module that cancels a dial."""

    what: str
    """``LayerNorm projector.output_norm``; ``inside <Class> <name>`` when the dial is in it."""
    before: float | None
    """Elasticity of its input; None when the dial is inside."""
    after: float
    """Elasticity of its output."""


@dataclass
class _Visit:
    """Norms of what went into and came out of a module, summed in squares over its calls."""

    finished: int = 0
    inputs: list[float] = field(default_factory=list)
    output: float = 0.0


class _Trace:
    """Visits of modules by name, until the place is reached."""

    def __init__(self) -> None:
        self.visits: dict[str, _Visit] = {}
        self.clock = 0
        self.done = False

    def start(self) -> None:
        self.visits, self.clock, self.done = {}, 0, False

    def look(self, name: str, call: Call) -> None:
        if self.done:
            return
        tensors = [t for t in call.tensors if t.is_floating_point()]
        results = call.output if isinstance(call.output, tuple | list) else [call.output]
        if not results or not isinstance(results[0], Tensor):
            return
        visit = self.visits.setdefault(name, _Visit())
        self.clock += 1
        visit.finished = self.clock
        visit.inputs += [0.0] * (len(tensors) - len(visit.inputs))
        for i, tensor in enumerate(tensors):
            visit.inputs[i] = math.hypot(visit.inputs[i], precise_norm(tensor))
        visit.output = math.hypot(visit.output, precise_norm(results[0].float()))

    def end(self, _call: Call) -> None:
        self.done = True


def find_cancelling(
    session: Session, path: ResolvedPath, dial: Dial, batch: Batch, layer: int | None
) -> Cancelling | None:
    """Run the model with the dial as it is and far away, and compare every module's norms.

    Args:
        session: a session without other hooks of ours.
        path: the signal path.
        dial: what is turned.
        batch: inputs.
        layer: fusion layer whose branch (or, for a gate, contribution) does not follow; None when
            the projector's tokens do not.

    Returns:
        The last module before the place whose input follows and whose output does not; failing
        that, the smallest module around the dial itself whose output does not; None without either.
    """
    modules, trace = _candidates(path, layer), _Trace()
    for name, module in modules.items():
        session.watch(module, partial(trace.look, name))
    _stop_at_place(session, path, dial, layer, trace)
    seen, strengths = [], []
    for factor in (1.0, _far(dial)):
        with dial.knob.multiplied(factor):
            trace.start()
            session.forward(batch)
            seen.append(trace.visits)
            strengths.append(dial.strength())
    if min(strengths) <= 0 or strengths[0] == strengths[1]:
        return None
    return _judge(modules, dial, seen[0], seen[1], math.log(strengths[1] / strengths[0]))


def _far(dial: Dial) -> float:
    """The first of :data:`FAR` that the dial follows."""
    near = dial.strength()
    for factor in FAR[:-1]:
        with dial.knob.multiplied(factor):
            if dial.strength() >= 0.9 * factor * near:
                return factor
    return FAR[-1]


def _judge(
    modules: dict[str, nn.Module],
    dial: Dial,
    near: dict[str, _Visit],
    far: dict[str, _Visit],
    log_range: float,
) -> Cancelling | None:
    def elasticity(a: float, b: float) -> float:
        return math.log(b / a) / log_range if a > 0 and b > 0 else math.nan

    crossing: dict[str, tuple[float, float]] = {}
    around: dict[str, float] = {}
    for name, old in near.items():
        new = far.get(name)
        if new is None:
            continue
        after = elasticity(old.output, new.output)
        before = [elasticity(a, b) for a, b in zip(old.inputs, new.inputs, strict=False)]
        strongest = max((x for x in before if not math.isnan(x)), default=0.0)
        if not abs(after) <= _CANCELLED:
            continue
        if strongest >= _FOLLOWS:
            crossing[name] = (strongest, after)
        if any(module is dial.knob.owner for module in modules[name].modules()):
            around[name] = after
    if crossing:
        inner = [n for n in crossing if not _contains_another(modules[n], n, crossing, modules)]
        last = max(inner, key=lambda n: near[n].finished)
        return Cancelling(_label(modules[last], last), *crossing[last])
    if around:
        first = min(around, key=lambda n: near[n].finished)
        return Cancelling(f"inside {_label(modules[first], first)}", None, around[first])
    return None


def _contains_another(
    module: nn.Module,
    name: str,
    names: dict[str, tuple[float, float]],
    modules: dict[str, nn.Module],
) -> bool:
    inside = {id(m) for m in module.modules()} - {id(module)}
    return any(id(modules[other]) in inside for other in names if other != name)


def _label(module: nn.Module, name: str) -> str:
    return f"{type(module).__name__} {name}".rstrip()


def _candidates(path: ResolvedPath, layer: int | None) -> dict[str, nn.Module]:
    """Modules outside decoder, encoder and head, and of this layer's fusion only, once each.

    A fusion block's module that it shares with the decoder works on the text, not on the signal.
    """
    parts = (*path.layers.values(), path.encoder, path.text_embeddings, path.head)
    frozen = {id(m) for part in parts if part is not None for m in part.modules()}
    own = path.fusion.get(-1 if layer is None else layer)
    if own is not None and id(own) in frozen:  # the fusion is a part of the decoder layer
        frozen -= {id(m) for m in own.modules()}
    for index, fusion in path.fusion.items():
        if index != layer:
            frozen |= {id(m) for m in fusion.modules()}
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in modules_by_name(path.model).items():
        if id(module) not in frozen:
            found[id(module)] = (name, module)
    return dict(found.values())


def _stop_at_place(
    session: Session, path: ResolvedPath, dial: Dial, layer: int | None, trace: _Trace
) -> None:
    """Stop looking at the place; registered last, so that the module there is still looked at."""
    if layer is None:
        session.watch(path.projector, trace.end)
    elif path.residual:
        if dial.gate is None:
            session.watch_input(path.residual[layer], trace.end)
        else:
            session.watch(path.residual[layer], trace.end)
    elif dial.gate is None:
        session.watch(path.branch[layer], trace.end)
    elif layer + 1 in path.layers:
        session.watch_input(path.layers[layer + 1], trace.end)
    elif path.head is not None:
        session.watch_input(path.head, trace.end)
