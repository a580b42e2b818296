"""SP1: whether the signal is there, and as loud as the text that it is put beside."""

import math
from collections.abc import Iterator

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Link, Severity
from probes.findings.rule import Family
from probes.findings.thresholds import Thresholds

MAGNITUDE = Family(
    "SP1",
    "Magnitude",
    "Whether the signal is finite, different from clip to clip, and neither inaudible nor "
    "deafening next to the text at the place where the two meet.",
)
_MAG = "magnitude"


@MAGNITUDE.rule(
    "SP101", "The projector gives NaN or infinity", Link.PROJECTOR, Severity.ERROR,
    what="Counts tokens of the projector with a NaN or infinite element; fires from one on.",
    why="One such token reaches every text token through attention, and the loss with it.",
    expected="no NaN and no infinity",
    source="arithmetic",
    remedy="look for NaN in the projector's weights and in the embeddings "
    "(`safe-train data check ROOT`); keep its tanh in float32",
)  # fmt: skip
def _projector_nonfinite(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    bad = facts.value(_MAG, "projector", "nonfinite")
    if bad:
        total = facts.value(_MAG, "projector", "tokens")
        yield Hit("projector", None, f"{bad:.0f} of {total:.0f} tokens are NaN or infinite")


@MAGNITUDE.rule(
    "SP102", "NaN or infinity appears in the hidden states", Link.FUSION, Severity.ERROR,
    what="Looks at the text's hidden states at the input and at each fusion layer, and at each "
    "gated branch; names the earliest place with a NaN or infinite value.",
    why="Everything after this place is NaN: the loss, every gradient, and after one optimizer "
    "step every weight.",
    expected="no NaN and no infinity",
    source="arithmetic",
    remedy="check the weights of the named layer for NaN; compute its branch in bfloat16 or "
    "float32 instead of float16",
)  # fmt: skip
def _hidden_nonfinite(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    if facts.value(_MAG, "projector", "nonfinite"):
        return  # SP101 is earlier
    at_input = facts.value(_MAG, "text", "nonfinite")
    if at_input:
        yield Hit("text_embeddings", None, f"{at_input:.0f} text tokens are NaN at the input")
        return
    text = facts.layers(_MAG, "text", "nonfinite")
    parts = facts.layers(_MAG, "fusion", "contribution_median")
    for layer in sorted(text.keys() | parts.keys()):
        if text.get(layer, 0):
            yield Hit("decoder", layer, f"{text[layer]:.0f} text tokens are NaN or infinite")
            return
        if not math.isfinite(parts.get(layer, 0.0)):
            yield Hit("fusion", layer, f"the contribution is {parts[layer]}, the text is finite")
            return


@MAGNITUDE.rule(
    "SP103", "The projector's tokens are all zero", Link.PROJECTOR, Severity.ERROR,
    what="Median L2 of the projector's tokens; fires at exactly 0.",
    why="Zero tokens have zero values: attention over them adds nothing, whatever the gate.",
    expected="tokens of a size that the scale sets, not 0",
    source="arithmetic",
    remedy="check that the scale is not 0 and that the last layer of the projector is initialised",
)  # fmt: skip
def _projector_zero(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    if facts.value(_MAG, "projector", "l2_median") == 0:
        yield Hit("projector", None, "median L2 of the projector's tokens is 0")


@MAGNITUDE.rule(
    "SP104", "The branch is too quiet", Link.FUSION, Severity.WARNING,
    what="||branch|| / ||hidden|| per text token, before the gate; fires when its median is below "
    "{quiet_branch:g} in every fusion layer (and not exactly 0, which is a cold start or SP211).",
    why="Even a gate of 0.3 then adds less than a thirtieth of the hidden state, and training "
    "spends its steps on turning up the volume.",
    expected="a branch of at least {quiet_branch:g} of the hidden states in some fusion layer",
    source="a real run on SmolLM2-135M",
    remedy="raise the projector's scale, e.g. --set model.projector.scale=10, or let "
    "`safe-probe calibrate` propose it",
)  # fmt: skip
def _quiet(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    ratios = facts.layers(_MAG, "fusion", "branch_ratio")
    if ratios and 0 < max(ratios.values()) < limits.quiet_branch:
        late = facts.step(_MAG) >= limits.warm and max(ratios.values()) < limits.quiet_branch / 30
        severity = Severity.ERROR if late else None
        yield Hit("fusion", None, f"||branch|| / ||hidden|| is {_spread(ratios)}", severity)


@MAGNITUDE.rule(
    "SP105", "The signal drowns the text", Link.FUSION, Severity.WARNING,
    what="Contribution ||fused - hidden|| / ||hidden|| per ordinary text token; fires when its "
    "median reaches {loud:g}, now or, while the outer gate warms up, when that has grown to what "
    "it will be.",
    why="The language model has never seen such hidden states: the loss starts above that of the "
    "model without the signal, and the first steps repair damage instead of learning to hear.",
    expected="0.1-0.3 at the start and below {loud:g} always",
    source="real runs on SmolLM2-135M: first loss 15.4 instead of 6.3 at 0.8-1.9; a warm-up puts "
    "the damage off (docs/case-study.md)",
    remedy="lower the scale or the gate, e.g. --set model.projector.scale=2.0, or let "
    "`safe-probe calibrate` propose both",
)  # fmt: skip
def _loud(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    now, later = _outer_gate(facts)
    for layer, ratio in facts.layers(_MAG, "fusion", "contribution_median").items():
        if limits.loud <= ratio < limits.deafening:
            yield Hit("fusion", layer, f"contribution {ratio:.2f} (median over text tokens)")
        elif ratio < limits.loud <= ratio * later / now:
            what = f"contribution {ratio * later / now:.2f} when the outer gate, now {now:.2g}, is"
            yield Hit("fusion", layer, f"{what} {later:.2g}")


def _outer_gate(facts: Facts) -> tuple[float, float]:
    """The factor before all gates, and what a warm-up will make of it."""
    now = facts.value("gates", "gate", "outer_gate")
    if now is None or not 0 < now < 1:
        return 1.0, 1.0
    return now, facts.value("gates", "gate", "outer_gate_at_end") or 1.0


@MAGNITUDE.rule(
    "SP106", "Nothing of the text is left beside the signal", Link.FUSION, Severity.ERROR,
    what="The contribution of SP105; fires from {deafening:g} on.",
    why="The fused state is the signal alone; the text that should ask the questions is gone.",
    expected="0.1-0.3 at the start and below {loud:g} always",
    source="a real run on SmolLM2-135M; 15 was survived, at a price",
    remedy="lower the projector's scale by the factor measured, e.g. --set "
    "model.projector.scale=2.0; check that nothing multiplies twice",
)  # fmt: skip
def _deafening(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    for layer, ratio in facts.layers(_MAG, "fusion", "contribution_median").items():
        if ratio >= limits.deafening:
            yield Hit("fusion", layer, f"contribution {ratio:.3g} (median over text tokens)")


@MAGNITUDE.rule(
    "SP107", "The signal's tokens are too quiet beside the text's", Link.PROJECTOR,
    Severity.WARNING,
    what="For a signal spliced into the sequence: median L2 of its tokens over that of text tokens "
    "at the input; fires below {quiet_token:g}.",
    why="The decoder's first layers normalise, but what is added to the residual stream stays "
    "small, and so do the gradients that come back.",
    expected="at least {quiet_token:g} of the text",
    source="LLaVA-1.5's visual tokens are at 37 times",
    remedy="raise the scale of the projector's last layer",
)  # fmt: skip
def _quiet_tokens(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    ratio = facts.value(_MAG, "signal", "l2_to_text")
    if ratio is not None and 0 < ratio < limits.quiet_token:
        yield Hit("projector", None, f"the signal's tokens have {ratio:.3g} of the text's L2")


@MAGNITUDE.rule(
    "SP108", "The signal's tokens are too loud beside the text's", Link.PROJECTOR,
    Severity.WARNING,
    what="As SP107; fires from {loud_token:g} on.",
    why="The residual stream of these positions is so large that no layer changes it any more: "
    "the decoder passes the signal on without working on it.",
    expected="at most {loud_token:g} times the text",
    source="LLaVA-1.5's visual tokens are at 37 times",
    remedy="lower the scale of the projector's last layer",
)  # fmt: skip
def _loud_tokens(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    ratio = facts.value(_MAG, "signal", "l2_to_text")
    if ratio is not None and ratio >= limits.loud_token:
        yield Hit("projector", None, f"the signal's tokens have {ratio:.3g} times the text's L2")


@MAGNITUDE.rule(
    "SP109", "The projector's tanh is saturated", Link.PROJECTOR, Severity.WARNING,
    what="Share of elements above 99% of the scale; fires from {saturated:g} on, as an error from "
    "{mostly_saturated:g} on.",
    why="At the end of tanh the gradient is zero: these elements are stuck at plus or minus the "
    "scale. It usually comes from a weak path downstream that makes training push, not from the "
    "scale itself.",
    expected="below {saturated:g} saturated",
    source="a real run on SmolLM2-135M: 1.3% good, 36-62% weak",
    remedy="strengthen what follows first (gate, learning rate of the adapter), then lower "
    "optim.lr_projector",
)  # fmt: skip
def _saturated(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_MAG, "projector", "saturated")
    if share is not None and share >= limits.saturated:
        severity = Severity.ERROR if share >= limits.mostly_saturated else None
        yield Hit("projector", None, f"{share:.1%} of the elements are saturated", severity)


@MAGNITUDE.rule(
    "SP110", "Units of the projector never change", Link.PROJECTOR, Severity.WARNING,
    what="Share of output units with the same value for every clip; fires from {dead_units:g} on.",
    why="A unit that is the same for every clip is a bias: it carries nothing of the sound.",
    expected="less than {dead_units:g} of the units constant",
    source="definition",
    remedy="lower the pre-activations (learning rate, initialisation) so that tanh or ReLU is not "
    "stuck, and check that different clips come in",
)  # fmt: skip
def _dead(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_MAG, "projector", "dead_units")
    if share is not None and limits.dead_units <= share < 1:
        yield Hit("projector", None, f"{share:.1%} of the units are the same for every clip")


@MAGNITUDE.rule(
    "SP111", "Every clip gives the same tokens", Link.PROJECTOR, Severity.ERROR,
    what="Share of constant units (1 = all) and mean cosine between the tokens of different clips; "
    "fires when all units are constant or the cosine exceeds {same_clips:g}.",
    why="The language model hears something, but always the same: it can learn a style, never "
    "what is in the clip.",
    expected="a cosine between clips below {same_clips:g}",
    source="embeddings of unlike clips differ",
    remedy="compare the embeddings that go in (SP6 findings); if they differ, the projector has "
    "collapsed: start it anew with a lower optim.lr_projector",
)  # fmt: skip
def _same_clips(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    cosine = facts.value(_MAG, "projector", "cosine_between_clips")
    constant = facts.value(_MAG, "projector", "dead_units") == 1
    if constant or (cosine is not None and cosine > limits.same_clips):
        text = "" if cosine is None else f"; mean cosine between clips {cosine:.6f}"
        units = "all units are the same for every clip" if constant else "units hardly differ"
        yield Hit("projector", None, f"{units}{text}")


@MAGNITUDE.rule(
    "SP112", "All tokens of a clip are the same", Link.PROJECTOR, Severity.WARNING,
    what="Mean cosine between the tokens of one clip; fires above {same_tokens:g}.",
    why="Attention over equal values returns that value, whatever it attends to: N tokens carry "
    "no more than one.",
    expected="a cosine between tokens below {same_tokens:g}",
    source="definition",
    remedy="give every token its own output weights (512 -> N x H), not one vector repeated",
)  # fmt: skip
def _same_tokens(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    cosine = facts.value(_MAG, "projector", "cosine_between_tokens")
    if cosine is not None and cosine > limits.same_tokens:
        yield Hit("projector", None, f"mean cosine between tokens of a clip {cosine:.6f}")


@MAGNITUDE.rule(
    "SP113", "Sink tokens spoil the mean norm of the text", Link.CLAIM, Severity.NOTE,
    what="Mean L2 of the text with attention sinks over the mean without; fires from "
    "{sink_inflation:g} on.",
    why="A scale chosen by the mean norm of the text is chosen for one token that carries nothing.",
    expected="a reference by medians over ordinary tokens",
    source="SmolLM2's first token has L2 25,000 where the median is 135",
    remedy="nothing is broken: compare with l2_median, as safe-probe does, never with a mean",
    symptom=False,
)  # fmt: skip
def _sinks(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    found = facts.layers(_MAG, "text", "sink_inflation")
    layers = [layer for layer, ratio in found.items() if ratio >= limits.sink_inflation]
    if layers:
        worst = max(layers, key=lambda layer: found[layer])
        yield Hit(
            "text", worst, f"sinks make the mean {found[worst]:.3g} times the mean of the others"
        )


@MAGNITUDE.rule(
    "SP114", "Close to the end of float16", Link.FUSION, Severity.WARNING,
    what="Largest element of text, sinks included, or signal while the model holds float16 "
    "weights; fires from {float16_room:g} on.",
    why="float16 ends at 65,504; one layer later this is infinity, then NaN.",
    expected="elements below {float16_room:g} in a float16 model",
    source="IEEE 754",
    remedy="--set model.dtype=bfloat16 (or float32)",
)  # fmt: skip
def _float16(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    yield from near_overflow(facts, limits)


def near_overflow(facts: Facts, limits: Thresholds) -> list[Hit]:
    """The first place of a float16 model whose elements are close to the end of float16."""
    if not facts.value("parameters", "model", "dtype.float16"):
        return []
    return [
        Hit(r.component, r.layer, f"{statistic} {r.value:.0f} in a float16 model")
        for statistic in ("max_abs", "sink_l2_median")
        for r in facts.all(_MAG, statistic)
        if r.value >= limits.float16_room
    ][:1]


def _spread(values: dict[int, float]) -> str:
    low, high = min(values.values()), max(values.values())
    layers = ", ".join(map(str, values))
    return f"{low:.3g} to {high:.3g} at layers {layers}"
