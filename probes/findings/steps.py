"""SP3, directions: whether gradients are the slope of the loss, and a step goes down by them."""

import math
from collections.abc import Iterator

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Link, Severity
from probes.findings.gradients import GRADIENTS, components
from probes.findings.thresholds import Thresholds
from probes.ledger import State
from probes.record import Record

_GRAD = "gradflow"


@GRADIENTS.rule(
    "SP318", "The gradient is not the slope of the loss", Link.GRADIENT, Severity.ERROR,
    symptom=False,
    what="Finite differences of the loss along the gradient, over its norm; fires when they are "
    "more than {wrong_slope:g} away from 1. Only float32 and float64 models can be judged.",
    why="Steps do not go downhill: reversed, or at random, they look as healthy as any in every "
    "norm.",
    expected="1 within {wrong_slope:g}",
    source="definition of the gradient; 0.99-1.01 in 40 healthy float32 set-ups",
    remedy="look for register_hook, register_full_backward_hook and autograd.Function in this part "
    "(gradient reversal, scaling, noise), or a loss in backward that is not the one reported",
)  # fmt: skip
def _slope(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    for r in components(facts, "slope"):
        if abs(r.value - 1) > limits.wrong_slope:
            yield Hit(r.component, r.layer, f"slope along the gradient / its norm {r.value:+.2g}")


@GRADIENTS.rule(
    "SP319", "A part of the gradient is missing", Link.GRADIENT, Severity.WARNING, symptom=False,
    what="Finite differences of the loss along random directions against what the gradient says; "
    "fires when they differ by more than {missing_slope:g} of the usual slope.",
    why="The loss depends on this part in a way that backward does not see: one of several ways "
    "is detached.",
    expected="equal within {missing_slope:g}",
    source="definition of the gradient; at most 0.006 in 40 healthy float32 set-ups",
    remedy="look for detach(), .data or no_grad on one of the ways from this part to the loss; "
    "--ignore SP319 where the gradient is stopped on purpose",
)  # fmt: skip
def _missing(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    for r in components(facts, "slope_mismatch"):
        if r.value > limits.missing_slope and not _wrong(facts, limits, r):
            measured = f"slopes along random directions differ by {r.value:.2g} of the usual one"
            yield Hit(r.component, r.layer, measured)


@GRADIENTS.rule(
    "SP320", "A step goes uphill", Link.OPTIMIZER, Severity.ERROR, symptom=False,
    what="Cosine between minus the gradient and one step of the given optimizer, without what it "
    "remembers and without weight decay; fires below -{uphill:g}.",
    why="Each step makes the loss larger, while norms, rates and updates look as usual.",
    expected="above 0: any optimizer goes downhill by one gradient alone",
    source="definition of descent; at least 0.2 in 54 healthy set-ups",
    remedy="look at this part's parameter groups for maximize=True, a negative learning rate, or a "
    "loss with its sign turned for another optimizer",
)  # fmt: skip
def _uphill(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    for r in components(facts, "downhill"):
        if r.value < -limits.uphill:
            yield Hit(r.component, r.layer, f"cosine with minus the gradient {r.value:+.2f}")


@GRADIENTS.rule(
    "SP321", "A step makes weights NaN or infinite", Link.OPTIMIZER, Severity.ERROR,
    what="How far one step of the given optimizer, undone afterwards, moves a component; fires "
    "when that is NaN or infinite although the gradient is finite.",
    why="From the next step on nothing of the model is left, and nothing brings it back.",
    expected="a finite step",
    source="arithmetic; one NaN in an optimizer's averages stays there for ever",
    remedy="look at the optimizer's state (exp_avg, exp_avg_sq) of this part: go back to the "
    "checkpoint before it, or start with a new state; check learning rate and eps",
)  # fmt: skip
def _step_nonfinite(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    if not facts.value(_GRAD, "model", "optimizer_given"):
        return
    for r in components(facts, "update_norm"):
        finite = facts.value(_GRAD, r.component, "state", r.layer) != State.NONFINITE
        if finite and not math.isfinite(r.value):
            yield Hit(r.component, r.layer, f"||update|| {r.value}, with a finite gradient")


def _wrong(facts: Facts, limits: Thresholds, r: Record) -> bool:
    slope = facts.value(_GRAD, r.component, "slope", r.layer)
    return slope is not None and abs(slope - 1) > limits.wrong_slope
