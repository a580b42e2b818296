"""SP4, influence: whether the signal changes what the model says. Wiring has its own file."""

import math
from collections.abc import Iterator

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Link, Severity
from probes.findings.rule import Family
from probes.findings.thresholds import Thresholds

INFLUENCE = Family(
    "SP4",
    "Wiring and influence",
    "Whether the fusion runs where and how it is declared, whether each knob does something, and "
    "whether the model says something else when it hears something else.",
)
_MAG, _INF = "magnitude", "influence"


@INFLUENCE.rule(
    "SP406", "Another clip gives the same output, bit for bit", Link.INFLUENCE, Severity.ERROR,
    what="Share of logits that change when every clip is replaced by another one; fires at exactly "
    "0, unless a closed gate or a zero branch at the start explains it.",
    why="The output does not depend on what is heard. Whatever is trained, it is not listening.",
    expected="different logits for different sounds",
    source="any connected signal changes some bit",
    remedy="see the earlier findings; without any, follow the signal with `safe-probe magnitude`",
)  # fmt: skip
def _disconnected(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    same = facts.value(_INF, "signal:swapped", "changed") == 0
    if same and not _cold(facts, limits) and not output_is_nonfinite(facts):
        yield Hit("model", None, "no logit changes in any bit with another clip's signal")


@INFLUENCE.rule(
    "SP407", "The signal is heard as a constant", Link.INFLUENCE, Severity.WARNING,
    what="KL divergence of the next-token distribution with another clip's signal, over that "
    "without any; fires below {constant_signal:g}, as an error after {warm:g} steps.",
    why="The model notices that there is a sound, but not which: a bias, as in a collapsed "
    "projector or an encoder that gives one embedding for all clips.",
    expected="a ratio well above {constant_signal:g}",
    source="two unlike sounds differ about as much as sound and no sound",
    remedy="compare embeddings and tokens between clips (SP111, SP6 findings)",
)  # fmt: skip
def _constant(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    swapped = facts.value(_INF, "signal:swapped", "kl")
    without = facts.value(_INF, "fusion:off", "kl") or facts.value(_INF, "signal:none", "kl")
    changed = facts.value(_INF, "signal:swapped", "changed")
    if swapped is None or not without or not changed or without < 1e-9:
        return
    if swapped < limits.constant_signal * without:
        late = facts.step(_INF) >= limits.warm
        measured = f"KL {swapped:.2g} nats/token between clips, {without:.2g} without signal"
        yield Hit("model", None, measured, Severity.ERROR if late else None)


@INFLUENCE.rule(
    "SP408", "The own clip helps hardly more than another's", Link.INFLUENCE, Severity.WARNING,
    what="Loss with another clip's signal minus loss with the own, after {warm:g} steps; fires "
    "below {signal_gain:g}, as an error when that is certain (two standard errors).",
    why="The caption loss falls in a blind model too: this difference is what was learned by "
    "listening.",
    expected="at least {signal_gain:g} nats/token",
    source="a real run on SmolLM2-135M, by step 100; a blind model had the lower loss",
    remedy="check that clips and captions belong together (order after shuffling), then the "
    "contribution (SP104) and the gates",
)  # fmt: skip
def _no_gain(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    gain = facts.value(_INF, "signal:swapped", "loss_change")
    step = facts.step(_INF)
    if gain is None or step < limits.warm or not gain < limits.signal_gain:
        return
    error = facts.value(_INF, "signal:swapped", "loss_change_error")
    certain = error is not None and gain + 2 * error < limits.signal_gain
    measured = f"{gain:+.3f} nats/token at step {step}"
    measured += "" if error is None else f", standard error {error:.3f}"
    yield Hit("model", None, measured, Severity.ERROR if certain else None)


@INFLUENCE.rule(
    "SP409", "The model is worse with the signal than without", Link.INFLUENCE, Severity.WARNING,
    what="Own loss minus the loss of the bare backbone; fires above {first_loss:g}.",
    why="The signal drowns the text: the first epochs go into repairing that.",
    expected="at most {first_loss:g} nats/token above the loss without the signal",
    source="a real run on SmolLM2-135M: 15.4 against 6.3 when over-driven",
    remedy="lower the contribution to 0.1-0.3 (`safe-probe calibrate`)",
)  # fmt: skip
def _harm(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    own = facts.value(_INF, "signal:own", "loss")
    bare = facts.value(_INF, "fusion:off", "loss")
    if own is not None and bare is not None and own - bare > limits.first_loss:
        yield Hit("model", None, f"loss {own:.2f}, without the signal {bare:.2f} nats/token")


@INFLUENCE.rule(
    "SP410", "A closed gate does not give the bare backbone", Link.INFLUENCE, Severity.ERROR,
    symptom=False,
    what="Logits with the gates at 0, or without a signal, against those with the fusion switched "
    "off, on captions and, where the model sees, on pictures; fires when a bit differs though "
    "repeating the same inputs changes none.",
    why="The adapter has a second way in, or the backbone was changed: the promise that the model "
    "is untouched without the new sense does not hold.",
    expected="the same bits",
    source="design: gate-off parity",
    remedy="multiply everything that the fusion adds by the gate, and edit no backbone weight",
)  # fmt: skip
def _parity(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    if output_is_nonfinite(facts):
        return
    for prefix, where in (("", ""), ("pictures_", ", with pictures")):
        if facts.value(_INF, "signal:repeat", f"{prefix}changed"):
            continue
        for control, words in (("gate:zero", "gates at 0"), ("signal:none", "no signal")):
            share = facts.value(_INF, control, f"{prefix}parity_changed")
            if share:
                largest = facts.value(_INF, control, f"{prefix}parity_max_change")
                reach = "" if largest is None else f", by up to {largest:.2g}"
                yield Hit(
                    "fusion", None, f"{words}{where}: {share:.1%} of the logits differ{reach}"
                )


@INFLUENCE.rule(
    "SP419", "The same inputs give another output", Link.INFLUENCE, Severity.WARNING,
    symptom=False,
    what="Share of logits that change when the same batch is run again in evaluation mode.",
    why="Something draws random numbers or keeps state in evaluation; no comparison is exact.",
    expected="the same bits, on a CPU with one thread",
    source="determinism of evaluation",
    remedy="look for dropout written as a function without training=self.training, random crops, "
    "or buffers that the forward pass changes",
)  # fmt: skip
def _random(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_INF, "signal:repeat", "changed")
    largest = facts.value(_INF, "signal:repeat", "max_change") or 0.0
    if share and largest > 1e-3:
        yield Hit("model", None, f"{share:.1%} of the logits change, by up to {largest:.2g}")


@INFLUENCE.rule(
    "SP420", "A probe could not measure", Link.INFLUENCE, Severity.NOTE,
    what="Probes that were asked for and gave no records: what they need is missing (a note), they "
    "failed on a model that takes its batches (a warning), or the model itself fails (an error).",
    why="What was not measured is unknown, not healthy.",
    expected="every probe that was asked for",
    source="definition of a check",
    remedy="read the reason under 'not measured'; most probes need labelled batches",
)  # fmt: skip
def _not_measured(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for r in facts.all("diagnosis", "not_measured"):
        if r.value == 2:
            yield Hit(r.component, None, "the model failed while it ran", Severity.ERROR)
        elif r.value == 3:
            measured = "the probe failed; the model itself takes these batches"
            yield Hit(r.component, None, measured, Severity.WARNING)
        elif r.value == 1:
            yield Hit(r.component, None, "what it needs is missing")


def output_is_nonfinite(facts: Facts) -> bool:
    """Whether the output is NaN anyway, so that comparing its bits says nothing (SP101, SP102)."""
    loss = facts.value(_INF, "signal:own", "loss")
    parts = facts.layers(_MAG, "fusion", "contribution_median").values()
    return not all(map(math.isfinite, [0.0 if loss is None else loss, *parts]))


def _cold(facts: Facts, limits: Thresholds) -> bool:
    """Whether nothing arrives (beyond rounding), and training has only begun to open the way."""
    arrives = facts.layers(_MAG, "fusion", "contribution_median").values()
    closed = [abs(v) == 0 for v in facts.layers("gates", "gate", "value").values()]
    nothing = bool(arrives) and max(arrives) < limits.gate_noise
    return (nothing or (bool(closed) and all(closed))) and facts.step(_INF) < limits.warm
