"""SP2: whether each gate is open, and able to learn."""

from collections.abc import Iterator

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Link, Severity
from probes.findings.rule import Family
from probes.findings.thresholds import Thresholds

GATES = Family(
    "SP2",
    "Gates",
    "Whether each gate lets the signal through, and whether training can open it further.",
)
_MAG, _G = "magnitude", "gates"


@GATES.rule(
    "SP201", "The outer gate is shut", Link.GATE, Severity.ERROR, symptom=False,
    what="The factor before all gates, warm-up included; fires at 0. At step 0 it is a warning, "
    "because a warm-up that has not begun looks the same.",
    why="Nothing of the signal enters any layer, no gradient comes back, and the model is the bare "
    "language model.",
    expected="above 0 from the first step on",
    source="design: the value of training is also that of evaluation",
    remedy="model.set_gate(1.0), and set_gate_warmup(step, steps) with steps counted from 1",
)  # fmt: skip
def _outer_shut(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    if facts.value(_G, "gate", "outer_gate") == 0:
        step = facts.step(_G)
        severity = Severity.WARNING if step == 0 else None
        yield Hit("gate", None, f"the outer gate is 0 at step {step}", severity)


@GATES.rule(
    "SP202", "The warm-up of the gate does not end", Link.GATE, Severity.ERROR, symptom=False,
    explains=("SP406", "SP407", "SP408", "SP701", "SP702"),
    what="The outer gate over the steps; fires when it is below 1 and has not changed over "
    "{warm:g} steps; or, as a warning, when it is below {warmup_stuck:g} after {warmup_over:g} "
    "steps or will be at the last step of the training.",
    why="The signal stays at a fraction of its strength, and scores are those of that fraction.",
    expected="a factor that grows to 1",
    source="seed: 2,000 steps of warm-up",
    remedy="call set_gate_warmup(step, steps) after every optimizer step, also after a resume; or "
    "--set model.fusion.gate_warmup_steps=0, or a few per cent of the training's steps",
)  # fmt: skip
def _warmup(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    last = facts.value(_G, "gate", "outer_gate_at_end")
    if last is not None and last < limits.warmup_stuck:
        reached = f"the outer gate will be {last:.2g} at the last step"
        yield Hit("gate", None, reached, Severity.WARNING)
        return
    seen = [(r.step, r.value) for r in facts.history if r.statistic == "outer_gate"]
    if not seen or not 0 < seen[-1][1] < 1:
        return
    step, value = seen[-1]
    same = [s for s, v in seen if v == value]
    if step - min(same) >= limits.warm:
        yield Hit("gate", None, f"the outer gate is {value:g} at step {min(same)} and at {step}")
    elif step >= limits.warmup_over and value < limits.warmup_stuck:
        yield Hit("gate", None, f"the outer gate is {value:g} at step {step}", Severity.WARNING)


@GATES.rule(
    "SP203", "The gate is frozen", Link.GATE, Severity.ERROR, symptom=False,
    what="Whether the gate requires a gradient; fires when it does not though other parts train. "
    "A gate that is no parameter but a constant is a note, unless it is 0.",
    why="The gate keeps its first value for ever: too small stays too small. PEFT freezes every "
    "parameter whose name does not contain its adapters'.",
    expected="a trainable gate in every fusion layer",
    source="PEFT's behaviour, issue 1402 among others",
    remedy="gate.requires_grad_(True) after PEFT has been applied, or modules_to_save in its "
    "configuration",
)  # fmt: skip
def _frozen(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    if facts.value("parameters", "model", "trainable") == 0:
        return  # SP503
    constant = facts.value("parameters", "model", "total") and not facts.value(
        "parameters", "gate", "total"
    )
    values = facts.layers(_G, "gate", "value")
    for layer, trainable in facts.layers(_G, "gate", "trainable").items():
        if not trainable:
            value = values.get(layer)
            note = constant and value != 0
            kind = "a constant" if constant else "frozen"
            yield Hit(
                "gate", layer, f"{kind} at {value:.4g}", Severity.NOTE if note else None
            )  # fmt: skip


@GATES.rule(
    "SP204", "The gate is nearly closed", Link.GATE, Severity.WARNING, symptom=False,
    what="|gate| after transform and clamp, or the gated branch over the branch where only "
    "magnitudes were measured; fires below {quiet_gate:g} when neither it nor the branch is 0 and "
    "the contribution, gate times branch, is below {quiet_gate:g} as well.",
    why="The contribution is a few thousandths of the hidden state; the loss does not notice it.",
    expected="a contribution of 0.1-0.3 at the start",
    source="a real run on SmolLM2-135M: 0.02-0.04 was enough to learn from",
    remedy="--set model.fusion.gate_init=0.3, or let `safe-probe calibrate` propose it",
)  # fmt: skip
def _nearly_closed(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    branch = facts.layers(_MAG, "fusion", "branch_ratio")
    for layer, value in (_let_through(facts) | facts.layers(_G, "gate", "value")).items():
        arrives = abs(value) * branch.get(layer, 1.0)
        if arrives and abs(value) < limits.quiet_gate > arrives:
            yield Hit("gate", layer, f"gate {value:.3g}")


def _let_through(facts: Facts) -> dict[int, float]:
    """What a layer's gate makes of its branch, by the magnitudes; the warm-up is no part of it."""
    branch = facts.layers(_MAG, "fusion", "branch_ratio")
    arrived = facts.layers(_MAG, "fusion", "contribution_median")
    gated = arrived | facts.layers(_MAG, "fusion", "gated_ratio")  # of no rounding, where known
    outer = facts.value(_MAG, "gate", "outer_gate")
    outer = 1.0 if outer is None else outer
    heard = {layer: outer * size for layer, size in branch.items() if outer * size > 0}
    return {layer: gated[layer] / size for layer, size in heard.items() if layer in gated}


@GATES.rule(
    "SP205", "The gate cannot learn", Link.GATE, Severity.ERROR, symptom=False,
    what="Slope of the gate, d value / d raw; fires at 0 for a trainable gate.",
    why="Outside its clamp (or far out on tanh or sigmoid) no gradient passes: the gate is "
    "trainable in name only and stays where it is.",
    expected="a slope above 0",
    source="the derivative of clamp, tanh and sigmoid",
    remedy="start inside the clamp (model.fusion.gate_init between 0 and model.fusion.gate_max), "
    "or let the gradient pass on its edges",
)  # fmt: skip
def _stuck(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    raw = facts.layers(_G, "gate", "raw")
    outside = facts.layers(_G, "gate", "outside_clamp")
    trainable = facts.layers(_G, "gate", "trainable")
    gradient = facts.layers(_G, "gate", "gradient")
    branch = facts.layers(_MAG, "fusion", "branch_ratio")
    for layer, slope in facts.layers(_G, "gate", "slope").items():
        # on an end of the clamp the gradient tells, unless a branch of 0 leaves none to be seen
        alive = gradient.get(layer, 0.0) != 0 or branch.get(layer) == 0
        on_edge = not outside.get(layer, 1.0) and alive
        if slope == 0 and trainable.get(layer, 1.0) and not on_edge:
            where = "outside its clamp" if outside.get(layer) else "where its slope is 0"
            yield Hit("gate", layer, f"raw gate {raw.get(layer, float('nan')):.4g} is {where}")


@GATES.rule(
    "SP206", "The gate has arrived at an end of its clamp", Link.GATE, Severity.NOTE,
    symptom=False,
    what="Share of elements on an end of the clamp; fires for a gate that is not 0 and can learn.",
    why="It can only move back: training asked for more than the clamp allows, or it began there.",
    expected="a gate inside its clamp",
    source="design",
    remedy="raise model.fusion.gate_max, or the projector's scale so that less gate is needed",
)  # fmt: skip
def _at_end(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    values = facts.layers(_G, "gate", "value")
    outside = facts.layers(_G, "gate", "outside_clamp")
    for layer, share in facts.layers(_G, "gate", "at_edge").items():
        if share == 1 and not outside.get(layer) and values.get(layer, 0.0) != 0:
            yield Hit("gate", layer, f"gate {values[layer]:.4g} is an end of its clamp")


@GATES.rule(
    "SP207", "The gate is not in the optimizer", Link.OPTIMIZER, Severity.ERROR, symptom=False,
    what="Whether the optimizer holds the trainable gate.",
    why="It gets a gradient that nobody applies.",
    expected="every trainable gate in a parameter group",
    source="torch.optim",
    remedy="build the optimizer from every parameter that requires a gradient, after PEFT has been "
    "applied and gates have been made",
)  # fmt: skip
def _not_held(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    trainable = facts.layers(_G, "gate", "trainable")
    for layer, held in facts.layers(_G, "gate", "in_optimizer").items():
        if not held and trainable.get(layer):
            yield Hit("gate", layer, "trainable, but in no parameter group")


@GATES.rule(
    "SP208", "Weight decay closes the gate", Link.OPTIMIZER, Severity.WARNING, symptom=False,
    what="Weight decay of the gate's parameter group; fires above 0.",
    why="Decay pulls a gate to 0 at every step, also while its gradient is still small.",
    expected="no weight decay on gates and biases",
    source="usual practice: decay on matrices only",
    remedy="put parameters with fewer than two dimensions into a group with weight_decay=0",
)  # fmt: skip
def _decay(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for layer, decay in facts.layers(_G, "gate", "weight_decay").items():
        if decay > 0:
            yield Hit("gate", layer, f"weight decay {decay:g}")


@GATES.rule(
    "SP209", "The gate is outside the graph of the loss", Link.GRADIENT, Severity.ERROR,
    what="The gate's .grad after backward; fires when it is None though the gate is trainable, "
    "and the outer gate is open.",
    why="The loss does not depend on the gate at all: it was read by .item(), .data or detach(), "
    "or the fusion never ran.",
    expected="a gradient, if only of 0",
    source="autograd",
    remedy="use the parameter itself in the forward pass: no .item(), .data, detach(), no_grad",
)  # fmt: skip
def _absent(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    if facts.value(_G, "gate", "outer_gate") == 0:
        return
    trainable = facts.layers(_G, "gate", "trainable")
    for layer, absent in facts.layers(_G, "gate", "gradient_absent").items():
        if absent and trainable.get(layer):
            yield Hit("gate", layer, ".grad is None after backward")


@GATES.rule(
    "SP210", "The gate is open, but its gradient is nothing", Link.GRADIENT, Severity.WARNING,
    what="|gradient| of an open gate whose branch is heard; fires below {tiny_gradient:g}, as an "
    "error at exactly 0.",
    why="Opening the gate further would change nothing: usually a normalisation after the gate "
    "cancels it. A gate that drifts all the same proves nothing, Adam rescales tiny gradients.",
    expected="a gradient above {tiny_gradient:g} nats/token",
    source="with LayerNorm after the gate its gradient was 1e-6 of the true one",
    remedy="remove the normalisation after gate * branch, or put it on the branch before the gate",
)  # fmt: skip
def _no_gradient(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    effective = facts.layers(_G, "gate", "effective")
    slope = facts.layers(_G, "gate", "slope")
    branch = facts.layers(_MAG, "fusion", "branch_ratio")
    single = facts.layers("gradflow", "gate", "norm_mean")
    for layer, mean in facts.layers(_G, "gate", "gradient").items():
        # batches that disagree may cancel, in bfloat16 even exactly
        gradient = max(abs(mean), single.get(layer, 0.0))
        heard = effective.get(layer, 0.0) * branch.get(layer, 1.0) != 0
        if heard and slope.get(layer, 1.0) != 0 and gradient < limits.tiny_gradient:
            severity = Severity.ERROR if gradient == 0 else None
            measured = f"gradient {gradient:.2g} at gate {effective[layer]:.3g}"
            yield Hit("gate", layer, measured, severity)


@GATES.rule(
    "SP211", "Gate and branch are both zero and wait for each other", Link.GATE, Severity.ERROR,
    what="Gate value and ||branch||; fires when both are exactly 0. One zero alone is a normal "
    "cold start and no finding.",
    why="The gate's gradient is proportional to the branch and the branch's to the gate: both are "
    "exactly 0, for ever. A training of any length changes nothing.",
    expected="at most one of them 0 at the start",
    source="the product rule; LoRA B = 0 on a base of 0 behind gate 0",
    remedy="start the gate above 0 (--set model.fusion.gate_init=0.3), or give the branch a base "
    "(--set model.fusion.base=shared)",
    symptom=False,
)  # fmt: skip
def _deadlock(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    branch = facts.layers(_MAG, "fusion", "branch_ratio")
    for layer, value in facts.layers(_G, "gate", "value").items():
        if value == 0 and branch.get(layer) == 0 and _tokens(facts):
            yield Hit("gate", layer, "gate 0 and branch 0")


@GATES.rule(
    "SP212", "The gate has not moved", Link.OPTIMIZER, Severity.ERROR,
    what="|gate now - gate at the start|; fires at exactly 0 after {warm:g} steps.",
    why="Whatever was trained, the gate was not.",
    expected="some movement within {warm:g} steps",
    source="any optimizer with a learning rate above 0",
    remedy="see the gate's other findings: frozen, not in the optimizer, outside its clamp, lr 0",
)  # fmt: skip
def _unmoved(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    trainable = facts.layers(_G, "gate", "trainable")
    for layer, moved in facts.layers(_G, "gate", "moved").items():
        step = facts.step(_G)
        if moved == 0 and step >= limits.warm and trainable.get(layer):
            yield Hit("gate", layer, f"exactly its first value after {step} steps")


@GATES.rule(
    "SP213", "The gate drifts without a reason", Link.OPTIMIZER, Severity.NOTE,
    what="A gate that moved while its gradient is below {tiny_gradient:g}.",
    why="Adam divides by the gradient's own size, so noise moves a parameter as far as a signal "
    "does: a moving gate is no evidence that it does anything.",
    expected="movement together with a gradient above {tiny_gradient:g} nats/token",
    source="a real run: gate 0.30 -> 0.36 on gradients below 1e-6 with LayerNorm after it",
    remedy="look at influence and sensitivity instead of the gate's curve",
)  # fmt: skip
def _drift(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    gradient = facts.layers(_G, "gate", "gradient")
    for layer, moved in facts.layers(_G, "gate", "moved").items():
        if moved > 0 and abs(gradient.get(layer, 1.0)) < limits.tiny_gradient:
            yield Hit("gate", layer, f"moved {moved:.3g} on a gradient of {gradient[layer]:.2g}")


def _tokens(facts: Facts) -> bool:
    """Whether the projector gives anything at all; if not, the branch is 0 because of that."""
    return facts.value(_MAG, "projector", "l2_median") != 0
