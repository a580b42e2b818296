"""SP3: whether every part gets a gradient, and the optimizer uses it. Directions: ``steps``."""

import math
from collections.abc import Iterator

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Link, Severity
from probes.findings.rule import Family
from probes.findings.thresholds import Thresholds
from probes.ledger import Reason, State
from probes.record import Record

GRADIENTS = Family(
    "SP3",
    "Gradients and optimizer",
    "Whether each part of the signal path gets a gradient from the loss, why not if it does not, "
    "and whether one optimizer step moves what it should and nothing else.",
)
_GRAD, _PAR = "gradflow", "parameters"
_PATH = ("projector", "fusion", "gate")
"""Components that exist to be trained."""


@GRADIENTS.rule(
    "SP301", "No gradient: outside the graph of the loss", Link.GRADIENT, Severity.ERROR,
    what="The ledger of gradients; fires for a component whose trainable parameters all have "
    ".grad None after backward. Loggers that skip None never show it.",
    why="The loss does not depend on this part at all, so it cannot learn.",
    expected="a gradient in every trainable part",
    source="autograd",
    remedy="look between this part and the loss for detach(), .data, no_grad, or gradient "
    "checkpointing whose inputs need no gradient (use_reentrant=False)",
)  # fmt: skip
def _none(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for r in components(facts, "state"):
        count = facts.value(_GRAD, r.component, "trainable", r.layer)
        if r.value == State.NONE and count:
            yield Hit(r.component, r.layer, f"{count:.0f} trainable tensors, every .grad is None")


@GRADIENTS.rule(
    "SP302", "Some parameters are outside the graph of the loss", Link.GRADIENT, Severity.WARNING,
    what="Trainable parameters with .grad None in a component whose others have one; outside "
    "projector, fusion and gates it is a note.",
    why="They are never used on the way to the loss: dead weight, or a wrong wire.",
    expected="a gradient for every trainable parameter",
    source="autograd; 18 parameters of LLaVA's last vision layer never get one",
    remedy="freeze what is not used, or use it in the forward pass",
)  # fmt: skip
def _some_none(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for r in components(facts, "none"):
        state = facts.value(_GRAD, r.component, "state", r.layer)
        if r.value and state in (State.ZERO, State.FINITE, State.NONFINITE):
            names = _names(facts, r, State.NONE)
            severity = None if r.component in _PATH else Severity.NOTE
            yield Hit(r.component, r.layer, f"{r.value:.0f} without .grad: {names}", severity)


@GRADIENTS.rule(
    "SP303", "The gradient is exactly zero, and nothing explains it", Link.GRADIENT,
    Severity.ERROR,
    what="Parameters whose gradient is exactly 0 in every batch, although opening gates and "
    "filling zero weights did not wake them. A zero behind a zero gate, or LoRA's A at step 0, "
    "wakes and is no finding. Single parameters of a part that learns are a warning.",
    why="The path to the loss is cut or saturated: training does not change this part.",
    expected="no exact zeros but in a cold start",
    source="autograd, and an experiment on this model",
    remedy="look downstream of this part: a saturated tanh or ReLU, a multiplication by 0, labels "
    "that are all ignored",
)  # fmt: skip
def _zero(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    yield from _unexplained(facts, Reason.UNKNOWN, "no reason found")


@GRADIENTS.rule(
    "SP304", "Zeros that wait for each other", Link.GRADIENT, Severity.ERROR,
    what="Parameters whose gradient is exactly 0 and wakes only when several zeros, none of which "
    "has a gradient, are moved together.",
    why="Each waits for the other for ever: LoRA with A = B = 0, or a closed gate on a zero "
    "branch. Training of any length changes nothing.",
    expected="at most one factor of a product 0 at the start",
    source="the product rule, and an experiment on this model",
    remedy="initialise LoRA's A at random (B = 0 alone is normal), or start the gate above 0",
)  # fmt: skip
def _deadlock(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for r in components(facts, "deadlock"):
        if r.value:
            names = _names(facts, r, State.ZERO)
            yield Hit(r.component, r.layer, f"gradient exactly 0 for ever: {names}")


@GRADIENTS.rule(
    "SP305", "A frozen, closed gate holds back the gradient", Link.GRADIENT, Severity.ERROR,
    what="Parameters whose gradient is exactly 0 and wakes when a gate that is 0 and frozen is "
    "opened.",
    why="The gate cannot open by itself, so what lies behind it never learns.",
    expected="a gate that is open or can learn",
    source="an experiment on this model",
    remedy="thaw the gate: gate.requires_grad_(True), after PEFT has been applied",
)  # fmt: skip
def _behind_frozen_gate(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    yield from _unexplained(facts, Reason.FROZEN_GATE, "behind a frozen gate at 0")


@GRADIENTS.rule(
    "SP322", "Frozen weights of zero hold back the gradient", Link.GRADIENT, Severity.ERROR,
    what="Parameters whose gradient is exactly 0 and wakes when frozen weights of projector or "
    "fusion that are all zero are filled. Single parameters of a part that learns are a warning.",
    why="A product with a zero that never moves: LoRA's B starts at 0, and frozen there it keeps A "
    "from learning, too.",
    expected="no frozen factor of zero in front of what is trained",
    source="the product rule, and an experiment on this model",
    remedy="thaw both factors of the product (LoRA's A and B), requires_grad_(True) after PEFT and "
    "from_pretrained (is_trainable=True), before the optimizer is made",
)  # fmt: skip
def _behind_frozen_zero(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    yield from _unexplained(facts, Reason.FROZEN_ZERO, "behind frozen weights of zero")


@GRADIENTS.rule(
    "SP306", "NaN or infinite gradients", Link.GRADIENT, Severity.ERROR,
    what="Trainable parameters with a NaN or infinite gradient in any batch.",
    why="One optimizer step with it makes weights NaN, and nothing brings them back.",
    expected="finite gradients",
    source="arithmetic",
    remedy="find the first NaN of the forward pass (SP101, SP102); without one, lower the scale or "
    "use bfloat16 instead of float16",
)  # fmt: skip
def _nonfinite(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for r in components(facts, "nonfinite"):
        if r.value:
            names = _names(facts, r, State.NONFINITE)
            yield Hit(r.component, r.layer, f"{r.value:.0f} tensors: {names}")


@GRADIENTS.rule(
    "SP307", "The loss is not finite", Link.GRADIENT, Severity.ERROR,
    what="Mean loss over the batches in training mode; fires when it is NaN or infinite.",
    why="There is nothing to learn from.",
    expected="a finite loss",
    source="arithmetic; a mean over no supervised tokens is NaN",
    remedy="check labels (SP601) and the first NaN of the forward pass (SP101, SP102)",
)  # fmt: skip
def _loss(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    loss = facts.value(_GRAD, "model", "loss")
    if loss is not None and not math.isfinite(loss):
        yield Hit("model", None, f"loss {loss}")


@GRADIENTS.rule(
    "SP308", "Trainable, but not in the optimizer", Link.OPTIMIZER, Severity.ERROR, symptom=False,
    what="Parameters that require a gradient and are in no parameter group (gates: SP207). Outside "
    "projector and fusion it is a warning.",
    why="Their gradient is computed, paid for, and thrown away.",
    expected="every trainable parameter in one group",
    source="torch.optim",
    remedy="build the optimizer after all modules exist, from every parameter that requires a "
    "gradient",
)  # fmt: skip
def _not_held(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for r in facts.all(_PAR, "trainable_not_in_optimizer"):
        if r.value and r.component not in ("gate", "model"):
            severity = None if r.component in _PATH else Severity.WARNING
            yield Hit(r.component, r.layer, f"{r.value:,.0f} parameters", severity)


@GRADIENTS.rule(
    "SP309", "Frozen, but in the optimizer", Link.OPTIMIZER, Severity.WARNING, symptom=False,
    what="Parameters of projector, fusion or gates that a group holds although they need no "
    "gradient.",
    why="Somebody meant to train them: they were frozen after the optimizer was made, or by PEFT.",
    expected="only trainable parameters in the optimizer",
    source="torch.optim",
    remedy="thaw them with requires_grad_(True), or leave them out of the groups",
)  # fmt: skip
def _frozen_held(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for r in facts.all(_PAR, "frozen_in_optimizer"):
        if r.value and r.component in _PATH:
            yield Hit(r.component, r.layer, f"{r.value:,.0f} parameters")


@GRADIENTS.rule(
    "SP310", "A parameter is twice in the optimizer", Link.OPTIMIZER, Severity.ERROR,
    symptom=False,
    what="Tensors that the parameter groups hold more than once.",
    why="Each step moves them twice, with a state that two updates share.",
    expected="every parameter once",
    source="torch.optim",
    remedy="collect parameters by id when building the groups",
)  # fmt: skip
def _twice(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    count = facts.value(_PAR, "optimizer", "duplicates")
    if count:
        yield Hit("optimizer", None, f"{count:.0f} tensors are held more than once")


@GRADIENTS.rule(
    "SP311", "The optimizer holds tensors that the model does not have", Link.OPTIMIZER,
    Severity.WARNING, symptom=False,
    what="Elements of tensors in the parameter groups that are not parameters of the model.",
    why="The optimizer was made for another copy of the model: what it moves is not what runs.",
    expected="no strangers",
    source="torch.optim; a module replaced, or moved by .to() to new tensors, after the optimizer",
    remedy="make the optimizer last, after PEFT, casts and loading",
)  # fmt: skip
def _strangers(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    count = facts.value(_PAR, "optimizer", "strangers")
    if count:
        yield Hit("optimizer", None, f"{count:,.0f} elements are of no parameter of the model")


@GRADIENTS.rule(
    "SP312", "The learning rate is zero", Link.OPTIMIZER, Severity.ERROR, symptom=False,
    what="Largest learning rate of a component while another component has one above 0. All at 0 "
    "after step 0 is a warning; at step 0 it is a warm-up that begins.",
    why="The component is in the optimizer and never moves.",
    expected="a learning rate above 0",
    source="torch.optim",
    remedy="give its parameter group a learning rate (optim.lr_projector, optim.lr_adapter), and "
    "check the schedule of every group",
)  # fmt: skip
def _lr_zero(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    best = facts.value(_PAR, "model", "lr_max")
    if best == 0 and facts.step(_PAR) > 0:
        yield Hit("model", None, "lr 0 in every group", Severity.WARNING)
    for r in facts.all(_PAR, "lr_max"):
        if r.value == 0 and best:
            yield Hit(r.component, r.layer, f"lr 0, others up to {best:g}")


@GRADIENTS.rule(
    "SP313", "An optimizer step does not move it", Link.OPTIMIZER, Severity.ERROR,
    what="One step of the optimizer, undone afterwards; fires for a component with finite "
    "gradients of which no bit changed, or whose relative change is below {slow_update:g}.",
    why="Training runs, the loss is printed, and nothing is learned.",
    expected="||update|| / ||weight|| above {slow_update:g}, usually about 1e-3",
    source="float32 arithmetic",
    remedy="raise the learning rate or optim.clip_norm; keep trainable weights in float32",
)  # fmt: skip
def _still(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    given = facts.value(_GRAD, "model", "optimizer_given")
    if not given or facts.value(_PAR, "model", "lr_max") == 0:
        return
    for r in components(facts, "moved_share"):
        held = facts.value(_PAR, r.component, "in_optimizer")
        finite = facts.value(_GRAD, r.component, "state", r.layer) == State.FINITE
        ratio = facts.value(_GRAD, r.component, "update_to_weight", r.layer)
        slow = ratio is not None and ratio < limits.slow_update
        if finite and held != 0 and r.component in _PATH and (r.value == 0 or slow):
            measured = "no bit changed" if r.value == 0 else f"||update||/||weight|| {ratio:.1e}"
            yield Hit(r.component, r.layer, measured)


@GRADIENTS.rule(
    "SP314", "A step moves what is frozen", Link.OPTIMIZER, Severity.ERROR, symptom=False,
    what="One step of the optimizer, undone afterwards; counts frozen tensors whose bits changed.",
    why="The backbone is not the one any more that was evaluated, and gate-off parity is lost.",
    expected="no frozen tensor changes",
    source="definition of frozen",
    remedy="leave frozen parameters out of the optimizer; weight decay moves them without gradient",
)  # fmt: skip
def _frozen_moved(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    count = facts.value(_GRAD, "model", "frozen_moved")
    if count:
        yield Hit("model", None, f"{count:.0f} frozen tensors changed")


@GRADIENTS.rule(
    "SP315", "A step throws the weights about", Link.OPTIMIZER, Severity.WARNING,
    what="||update|| / ||weight|| of one step, by component without gates; fires from "
    "{violent_update:g} on.",
    why="Weights are replaced, not adjusted: tanh saturates, and the loss jumps.",
    expected="below {violent_update:g}, usually about 1e-3",
    source="common practice",
    remedy="lower optim.lr_projector or optim.lr_adapter, or warm the learning rate up",
)  # fmt: skip
def _violent(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    if not facts.value(_GRAD, "model", "optimizer_given"):
        return
    for r in components(facts, "update_to_weight"):
        if r.component in ("projector", "fusion") and r.value >= limits.violent_update:
            yield Hit(r.component, r.layer, f"||update||/||weight|| {r.value:.2g}")


@GRADIENTS.rule(
    "SP316", "The gradient is huge", Link.GRADIENT, Severity.WARNING,
    what="L2 of the whole mean gradient before clipping; fires from {violent_gradient:g} on.",
    why="Clipping then decides the length of every step, and its direction is that of the few "
    "parameters that explode.",
    expected="below {violent_gradient:g} nats/token per unit of weight",
    source="a real run on SmolLM2-135M: 750 when over-driven, 1-10 otherwise",
    remedy="lower the contribution at the start (SP105), e.g. --set model.projector.scale=2.0",
)  # fmt: skip
def _huge(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    norm = facts.value(_GRAD, "model", "norm")
    if norm is not None and limits.violent_gradient <= norm < math.inf:
        yield Hit("model", None, f"gradient norm {norm:.3g}")


@GRADIENTS.rule(
    "SP317", "The gradient is mostly noise", Link.GRADIENT, Severity.NOTE,
    what="||mean gradient|| over its standard deviation across at least 8 batches; fires below "
    "{noisy_gradient:g}.",
    why="The batches disagree about the direction: steps wander.",
    expected="above {noisy_gradient:g}",
    source="pure noise over n batches gives 1/sqrt(n)",
    remedy="raise the clips per step (optim.accumulation), or the strength of the signal",
)  # fmt: skip
def _noise(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    if (facts.value(_GRAD, "model", "batches") or 0) < 8:
        return
    for r in components(facts, "snr"):
        if r.component in _PATH and r.value < limits.noisy_gradient:
            yield Hit(r.component, r.layer, f"signal to noise {r.value:.2g}")


def components(facts: Facts, statistic: str) -> list[Record]:
    """Gradflow's newest records of whole components."""
    return [r for r in facts.all(_GRAD, statistic) if not r.detail and r.component != "model"]


def _parameters(facts: Facts, component: str, layer: int | None, state: State) -> list[Record]:
    """State records of the single trainable parameters of a component."""
    return [
        r
        for r in facts.all(_GRAD, "state")
        if r.detail and r.part == component and r.layer == layer and r.value == state
        and facts.value(_GRAD, r.component, "trainable", layer)
    ]  # fmt: skip


def _names(facts: Facts, where: Record, state: State) -> str:
    names = [r.detail for r in _parameters(facts, where.component, where.layer, state)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _unexplained(facts: Facts, reason: Reason, words: str) -> Iterator[Hit]:
    """Components with parameters whose zero gradient has this reason."""
    for r in components(facts, "zero"):
        if not r.value:
            continue
        names = [
            p.detail
            for p in _parameters(facts, r.component, r.layer, State.ZERO)
            if facts.value(_GRAD, p.component, "explained", p.layer) == reason
        ]
        if names:
            whole = facts.value(_GRAD, r.component, "state", r.layer) == State.ZERO
            severity = None if whole and r.component in _PATH else Severity.WARNING
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            yield Hit(r.component, r.layer, f"exactly 0 in every batch, {words}: {some}", severity)
