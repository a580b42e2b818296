"""SP4, wiring: whether the fusion runs where and how it is declared, and every knob works."""

from collections.abc import Iterator

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Link, Severity
from probes.findings.influence import INFLUENCE, output_is_nonfinite
from probes.findings.magnitude import near_overflow
from probes.findings.thresholds import Thresholds
from probes.record import Record

_MAG, _INF, _SENS, _ATT = "magnitude", "influence", "sensitivity", "attention"


@INFLUENCE.rule(
    "SP401", "The fusion never runs", Link.FUSION, Severity.ERROR, symptom=False,
    what="Calls of the fusion per forward pass with the outer gate open; fires at 0.",
    why="The signal has no way into the decoder: a hook was not registered, or was removed.",
    expected="one call per forward pass",
    source="design: fusion is added to what leaves decoder layer L",
    remedy="register the forward hook of this layer before the forward pass, and keep its handle",
)  # fmt: skip
def _never(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    if facts.value("gates", "gate", "outer_gate") == 0:
        return  # SP201
    for layer, calls in facts.layers(_MAG, "fusion", "calls").items():
        if calls == 0:
            yield Hit("fusion", layer, "0 calls per forward pass")


@INFLUENCE.rule(
    "SP402", "The fusion runs more than once", Link.FUSION, Severity.ERROR, symptom=False,
    what="Calls of the fusion per forward pass; fires above 1.",
    why="The signal is added several times, at a strength that no gate says.",
    expected="one call per forward pass (recomputation under checkpointing is not counted)",
    source="design: fusion is added to what leaves decoder layer L",
    remedy="remove the hook before registering it again",
)  # fmt: skip
def _often(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for layer, calls in facts.layers(_MAG, "fusion", "calls").items():
        if calls > 1:
            yield Hit("fusion", layer, f"{calls:g} calls per forward pass")


@INFLUENCE.rule(
    "SP403", "The fusion sits at another layer", Link.FUSION, Severity.ERROR, symptom=False,
    what="The decoder layer that was entered last when the fusion ran; fires when it is not the "
    "declared one.",
    why="The adapter was made for (and borrows the weights of) another layer, and every report by "
    "layer is wrong.",
    expected="fusion after the layer whose number it has, counted from 0",
    source="design: layer L is layers[L]",
    remedy="register the hook on layers[L], not on layers[L-1] or layers[L+1]",
)  # fmt: skip
def _elsewhere(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for layer, after in facts.layers(_MAG, "fusion", "after_layer").items():
        if after != layer:
            yield Hit("fusion", layer, f"ran after decoder layer {after:.0f}")


@INFLUENCE.rule(
    "SP404", "What arrives is not gate times branch", Link.FUSION, Severity.ERROR,
    what="Measured contribution against gate * ||branch|| / ||hidden||; fires when they differ by "
    "more than {gate_mismatch:g} of the larger.",
    why="Something works between the gate and the hidden state: a normalisation that cancels the "
    "gate, a second factor, or another gate value in evaluation than in training.",
    expected="equal within rounding",
    source="hidden + gate * branch",
    remedy="add gate * branch as it is: move the LayerNorm in front of the gate, and apply the "
    "warm-up factor in evaluation as in training",
)  # fmt: skip
def _not_the_product(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    declared = facts.layers(_MAG, "fusion", "gated_ratio")
    for layer, arrived in facts.layers(_MAG, "fusion", "contribution_median").items():
        product = declared.get(layer)
        if product is None:
            continue
        gap = abs(arrived - product)
        if gap > limits.gate_noise and gap > limits.gate_mismatch * max(arrived, product):
            yield Hit("fusion", layer, f"{arrived:.3g} arrives, gate * branch is {product:.3g}")


@INFLUENCE.rule(
    "SP405", "The projector never runs", Link.PROJECTOR, Severity.ERROR, symptom=False,
    what="Calls of the projector per forward pass with the outer gate open; fires at 0.",
    why="The signal is dropped before it becomes tokens: a wrong keyword is swallowed silently by "
    "many forward functions.",
    expected="at least one call per forward pass",
    source="design",
    remedy="check the name of the keyword that holds the signal (SignalPath.signal_input)",
)  # fmt: skip
def _no_projector(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    shut = facts.value("gates", "gate", "outer_gate") == 0
    if facts.value(_MAG, "projector", "calls") == 0 and not shut:
        yield Hit("projector", None, "0 calls per forward pass")


@INFLUENCE.rule(
    "SP411", "A fusion layer's contribution is thrown away", Link.FUSION, Severity.ERROR,
    what="Logits when one fusion layer is left out; fires when no bit changes although the layer "
    "has a contribution.",
    why="What the fusion computes is not what the next layer reads.",
    expected="different logits without the layer",
    source="any connected contribution changes some bit",
    remedy="return the fused hidden states from the hook (one that returns None changes nothing)",
)  # fmt: skip
def _thrown_away(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    arrives = facts.layers(_MAG, "fusion", "contribution_median")
    if output_is_nonfinite(facts):
        return
    for layer, changed in facts.layers(_INF, "fusion", "changed").items():
        if changed == 0 and arrives.get(layer, 0.0) > limits.gate_noise:
            yield Hit("fusion", layer, f"contribution {arrives[layer]:.3g}, no logit changes")


@INFLUENCE.rule(
    "SP412", "A knob is not connected", Link.FUSION, Severity.ERROR, symptom=False,
    what="Multiplies each scale and gate; fires when not one bit changes at the first place that "
    "should follow it.",
    why="The number can be set, saved and tuned, and does nothing.",
    expected="a change in proportion to the knob",
    source="an experiment on this model",
    remedy="use the attribute in forward() instead of a copy taken in __init__",
)  # fmt: skip
def _unconnected(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    if facts.value("gates", "gate", "outer_gate") == 0:
        return  # SP201
    for r in _dials(facts, facts.all(_SENS, "strength")):
        places = ("tokens",) if r.part == "projector" else ("contribution", "logits")
        seen = [facts.value(_SENS, r.component, f"relative_change_{p}", r.layer) for p in places]
        first = next((value for value in seen if value is not None), None)
        if first == 0 and not _nothing_to_turn(facts, limits, r):
            yield Hit(_part(r), r.layer, f"{_name(r)} turned by 0.6 and 1.7: no change at all")


@INFLUENCE.rule(
    "SP413", "A normalisation cancels a knob", Link.FUSION, Severity.ERROR, symptom=False,
    what="Elasticity of what follows each scale and gate (1: in proportion, 0: cancelled); fires "
    "for a module that follows the knob at its input and not at its output.",
    why="The knob has no effect at all on what follows, and its gradient is rounding noise: scale "
    "2 and scale 10 are the same model.",
    expected="nothing that normalises after the projector's scale or after the gate",
    source="LayerNorm(a x) = LayerNorm(x)",
    remedy="remove the named normalisation, or put it in front of the scale",
)  # fmt: skip
def _cancelled(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    named = [
        r
        for r in facts.all(_SENS, "elasticity_after")
        if r.detail and not (r.part == "gate" and _nothing_to_turn(facts, limits, r))
    ]
    for r in named:
        yield Hit(_part(r), r.layer, f"{r.detail} cancels it (elasticity {r.value:.2g} after it)")
    if named:
        return
    places = {"projector": "elasticity_tokens", "gate": "elasticity_contribution"}
    for part, statistic in places.items():
        for r in _dials(facts, facts.all(_SENS, statistic)):
            lost = _nothing_to_turn(facts, limits, r)
            if r.part == part and abs(r.value) < 0.1 and not lost:
                yield Hit(_part(r), r.layer, f"{_name(r)}: {statistic} {r.value:.2g}")


@INFLUENCE.rule(
    "SP414", "Attention hears one token only", Link.FUSION, Severity.WARNING,
    what="Largest attention weight over the signal's tokens, mean over text tokens; fires above "
    "{one_hot:g}.",
    why="Softmax at its end has no gradient: queries and keys cannot learn to look elsewhere.",
    expected="below {one_hot:g}",
    source="a real run on SmolLM2-135M: above 0.997 when over-driven",
    remedy="lower the projector's scale: keys that are too large make attention one-hot",
)  # fmt: skip
def _one_hot(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    tokens = facts.layers(_ATT, "fusion", "tokens_in_use")
    for layer, weight in facts.layers(_ATT, "fusion", "max_weight").items():
        if weight > limits.one_hot and tokens.get(layer, 2.0) > 1:
            yield Hit("fusion", layer, f"largest weight {weight:.4f} on average")


@INFLUENCE.rule(
    "SP415", "Attention is uniform", Link.FUSION, Severity.NOTE,
    what="Entropy of the attention over that of a uniform one; fires above {uniform:g}.",
    why="Every text token hears the mean of all tokens: which token says what has no effect. "
    "Normal at the start with small keys; not after training.",
    expected="some choice after training",
    source="definition of entropy",
    remedy="raise the projector's scale or the adapter's learning rate",
)  # fmt: skip
def _uniform(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    for layer, share in facts.layers(_ATT, "fusion", "entropy_relative").items():
        if share > limits.uniform:
            yield Hit("fusion", layer, f"{share:.5f} of the largest possible entropy")


@INFLUENCE.rule(
    "SP416", "Attention falls on masked tokens", Link.FUSION, Severity.ERROR, symptom=False,
    what="Attention weight on tokens that the mask forbids; fires above 0.001 per text token.",
    why="The mask is inverted, shifted, or not applied: padding is heard as sound.",
    expected="no weight on masked tokens",
    source="definition of the mask",
    remedy="mask the scores with -inf where the mask is False, before softmax",
)  # fmt: skip
def _masked(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for layer, weight in facts.layers(_ATT, "fusion", "masked_weight").items():
        if weight > 1e-3:
            yield Hit("fusion", layer, f"weight {weight:.3g} on tokens that are masked")


@INFLUENCE.rule(
    "SP417", "All tokens of a clip are masked", Link.FUSION, Severity.ERROR, symptom=False,
    what="Clips whose tokens may none be attended to, or attention rows of NaN.",
    why="Softmax over nothing is NaN, or uniform over padding.",
    expected="at least one token per clip",
    source="softmax over -inf alone",
    remedy="check the sense of the mask (True: may be attended to) and model.projector.min_tokens",
)  # fmt: skip
def _all_masked(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    broken = facts.layers(_ATT, "fusion", "nonfinite")
    # NaN that came in (SP101), or scores that overflowed (SP102), need no mask to make NaN rows
    finite = not facts.value(_MAG, "projector", "nonfinite") and not near_overflow(facts, limits)
    masked = facts.layers(_ATT, "fusion", "all_masked")
    for layer in sorted(broken.keys() | masked.keys()):
        if masked.get(layer):
            yield Hit("fusion", layer, f"{masked[layer]:.1%} of the texts have no token to hear")
        elif broken.get(layer) and finite and layer == min(broken):
            yield Hit("fusion", layer, f"{broken[layer]:.1%} of the attention rows are NaN")


@INFLUENCE.rule(
    "SP418", "Attention weights do not sum to 1", Link.FUSION, Severity.ERROR, symptom=False,
    what="Largest deviation of a row's sum from 1; fires above 0.05.",
    why="A mask or dropout after softmax scales the branch differently for every clip.",
    expected="rows that sum to 1 within rounding (0.02 in bfloat16)",
    source="definition of softmax",
    remedy="mask before softmax; no dropout on the weights in evaluation",
)  # fmt: skip
def _sums(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for layer, error in facts.layers(_ATT, "fusion", "row_sum_error").items():
        if error > 0.05:
            yield Hit("fusion", layer, f"a row sums to {error:.3g} away from 1")


@INFLUENCE.rule(
    "SP421", "Tokens of the signal are dropped before the fusion", Link.FUSION, Severity.WARNING,
    symptom=False,
    what="Tokens that the attention runs over against tokens per clip that the projector makes; "
    "fires when there are fewer.",
    why="What the dropped tokens say is never heard, and the weights that make them never learn.",
    expected="every token of the projector in reach of the attention, unless a module pools them",
    source="definition of cross-attention",
    remedy="look between projector and fusion for a slice or a maximal length; "
    "--ignore SP421 where tokens are pooled on purpose",
)  # fmt: skip
def _dropped(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    made = facts.value("data", "signal", "tokens")
    for layer, heard in facts.layers(_ATT, "fusion", "tokens").items():
        if made is not None and heard < made - 0.5:
            yield Hit("fusion", layer, f"attention over {heard:g} of {made:g} tokens")


@INFLUENCE.rule(
    "SP429", "The mask of the signal's tokens is displaced", Link.FUSION, Severity.WARNING,
    symptom=False,
    what="Texts whose tokens that may be attended to are neither a beginning nor an end of the "
    "clip's tokens.",
    why="A clip's tokens in use are padded on one side: a run in the middle, or in pieces, is a "
    "mask shifted by some places. Tokens of the clip are lost and padding is heard.",
    expected="one run of tokens that begins with the first or ends with the last",
    source="definition of padding",
    remedy="compare the mask with arange(N) < count[:, None]; no roll, no row of another clip",
)  # fmt: skip
def _displaced(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for layer, share in facts.layers(_ATT, "fusion", "mask_displaced").items():
        if share:
            yield Hit("fusion", layer, f"{share:.1%} of the texts")


def _nothing_to_turn(facts: Facts, limits: Thresholds, dial: Record) -> bool:
    """Whether what the dial multiplies is zero anyway, or lost in the rounding of bfloat16."""
    if dial.part == "projector":
        return facts.value(_MAG, "projector", "l2_median") == 0
    gated = facts.value(_MAG, "fusion", "gated_ratio", dial.layer)
    if gated is None:
        gated = facts.value(_MAG, "fusion", "contribution_median", dial.layer)
    return gated is not None and gated < limits.gate_noise


def _dials(facts: Facts, records: list[Record]) -> list[Record]:
    """Records of dials that could really be turned (a clamp may hold one fast)."""
    return [
        r
        for r in records
        if abs((facts.value(_SENS, r.component, "strength_range", r.layer) or 2.0) - 1) > 0.05
    ]


def _part(record: Record) -> str:
    return "projector" if record.part == "projector" else record.part


def _name(record: Record) -> str:
    return record.detail or "the gate"
