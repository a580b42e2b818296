"""SP5: whether what should be trained is, and stated numbers are true."""

from collections.abc import Iterator

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Link, Severity
from probes.findings.rule import Family
from probes.findings.thresholds import Thresholds

PARAMETERS = Family(
    "SP5",
    "Parameters and claims",
    "Which parts are trainable, in which precision, and whether stated sizes are true.",
)
_PAR = "parameters"


@PARAMETERS.rule(
    "SP501", "The decoder is trainable", Link.OPTIMIZER, Severity.WARNING, symptom=False,
    what="Trainable share of the decoder's parameters; fires above {trainable_decoder:g} (an "
    "adapter inside it has about 1%). With a fusion beside the decoder it is an error when an "
    "optimizer holds them. Token embeddings and output head are looked at alike, as a warning.",
    why="The backbone forgets, memory grows several times, and without the signal the model is not "
    "the one any more that was published.",
    expected="a frozen decoder, or an adapter below {trainable_decoder:g} of it",
    source="design: frozen LLaVA",
    remedy="backbone.requires_grad_(False) before the adapter is made",
)  # fmt: skip
def _decoder(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    beside = bool(facts.value(_PAR, "fusion", "total"))
    for part in ("decoder", "text_embeddings", "lm_head"):
        total = facts.value(_PAR, part, "total")
        trainable = facts.value(_PAR, part, "trainable") or 0.0
        if not total or trainable <= limits.trainable_decoder * total:
            continue
        frozen = facts.value(_PAR, part, "trainable_not_in_optimizer")
        held = frozen is not None and frozen < trainable
        severity = Severity.ERROR if held and beside and part == "decoder" else None
        yield Hit(part, None, f"{trainable:,.0f} of {total:,.0f} are trainable", severity)


@PARAMETERS.rule(
    "SP502", "The encoder is trainable", Link.ENCODER, Severity.NOTE, symptom=False,
    what="Trainable parameters of the encoder.",
    why="Embeddings change under the projector, and cached ones are out of date after a step.",
    expected="a frozen encoder",
    source="design: frozen CLAP",
    remedy="encoder.requires_grad_(False), unless it is meant to be trained",
)  # fmt: skip
def _encoder(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    count = facts.value(_PAR, "encoder", "trainable")
    if count:
        yield Hit("encoder", None, f"{count:,.0f} parameters are trainable")


@PARAMETERS.rule(
    "SP503", "Nothing is trainable", Link.OPTIMIZER, Severity.NOTE, symptom=False,
    what="Trainable parameters of the whole model; fires at 0, as an error with an optimizer.",
    why="A training would change nothing. For inference it is as it should be.",
    expected="a trainable projector and fusion",
    source="design",
    remedy="thaw the adapter: requires_grad_(True) on projector, fusion and gates",
)  # fmt: skip
def _nothing(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    if facts.value(_PAR, "model", "trainable") == 0:
        severity = Severity.ERROR if _has_optimizer(facts) else None
        yield Hit("model", None, "0 trainable parameters", severity)


@PARAMETERS.rule(
    "SP504", "The projector is frozen", Link.PROJECTOR, Severity.ERROR, symptom=False,
    what="Trainable parameters of the projector while other parts train.",
    why="A projector at its random start gives the decoder noise; the rest can only learn to "
    "ignore it.",
    expected="a trainable projector",
    source="design",
    remedy="projector.requires_grad_(True); a pretrained projector may stay frozen: --ignore SP504",
)  # fmt: skip
def _projector(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    yield from _frozen(facts, "projector")


@PARAMETERS.rule(
    "SP505", "The fusion is frozen", Link.FUSION, Severity.ERROR, symptom=False,
    what="Trainable parameters of the fusion while other parts train.",
    why="The cross-attention never learns to read the signal's tokens.",
    expected="trainable LoRA factors in every fusion layer",
    source="design",
    remedy="apply PEFT to the fusion's projections, and freeze only the base weights",
)  # fmt: skip
def _fusion(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    yield from _frozen(facts, "fusion")


def _frozen(facts: Facts, component: str) -> Iterator[Hit]:
    total = facts.value(_PAR, component, "total")
    trainable = facts.value(_PAR, component, "trainable")
    if total and trainable == 0 and facts.value(_PAR, "model", "trainable"):
        yield Hit(component, None, f"0 of {total:,.0f} parameters are trainable")


@PARAMETERS.rule(
    "SP506", "A stated size is not the measured one", Link.CLAIM, Severity.WARNING, symptom=False,
    what="Stated and measured parameters; fires when they differ by more than {claim:g}.",
    why="Memory, learning rate and expectations were chosen for a model that does not exist.",
    expected="a difference below {claim:g}",
    source="the counts of the model itself",
    remedy="state the measured number (`safe-probe params --config NAME`)",
)  # fmt: skip
def _claims(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    for r in facts.all("claims", "stated"):
        measured = facts.value("claims", r.component, "measured")
        if measured and r.unit == "parameters" and abs(measured / r.value - 1) > limits.claim:
            ratio = measured / r.value
            yield Hit(
                r.component, None,
                f"stated {r.value:,.0f}, measured {measured:,.0f} ({ratio:.2f} times)",
            )  # fmt: skip


@PARAMETERS.rule(
    "SP507", "The stated memory is not what is needed", Link.CLAIM, Severity.NOTE, symptom=False,
    what="Planned bytes of weights, gradients, optimizer and activations against the stated range; "
    "fires outside it by more than {claim:g}.",
    why="A GPU is chosen by this number.",
    expected="a plan inside the stated range",
    source="arithmetic; activations are estimated, see `safe-probe params`",
    remedy="ask for a GPU by the plan, and confirm with one step of the real model",
)  # fmt: skip
def _memory(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    low = facts.value("claims", "memory", "stated_low")
    high = facts.value("claims", "memory", "stated_high")
    planned = facts.value("claims", "memory", "measured")
    if low is None or high is None or planned is None:
        return
    if not low * (1 - limits.claim) <= planned <= high * (1 + limits.claim):
        measured = f"planned {planned / 1e9:.1f} GB, stated {low / 1e9:.0f}-{high / 1e9:.0f} GB"
        yield Hit("model", None, measured)


@PARAMETERS.rule(
    "SP508", "Trainable weights in half precision", Link.OPTIMIZER, Severity.WARNING,
    symptom=False, explains=("SP212", "SP313"),
    what="Projector, fusion or gates that train and hold only float16 or bfloat16 parameters.",
    why="An update below 0.4% of a bfloat16 weight (0.05% in float16) is rounded away: with a "
    "learning rate of 1e-4 most steps change nothing.",
    expected="float32 trainables beside a half-precision backbone",
    source="IEEE 754: bfloat16 has 8 bits of significand",
    remedy="module.float() for what trains; keep the frozen backbone in bfloat16",
)  # fmt: skip
def _half(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for component in ("projector", "fusion", "gate"):
        total = facts.value(_PAR, component, "total")
        trainable = facts.value(_PAR, component, "trainable")
        for dtype in ("float16", "bfloat16"):
            count = facts.value(_PAR, component, f"dtype.{dtype}")
            if trainable and count and count == total:
                yield Hit(component, None, f"{trainable:,.0f} trainable parameters in {dtype}")


@PARAMETERS.rule(
    "SP509", "LoRA's scaling is unusual", Link.FUSION, Severity.WARNING, symptom=False,
    what="Scaling of each LoRA module (alpha / r); fires outside {lora_low:g} to {lora_high:g}, as "
    "an error at 0.",
    why="The scaling multiplies what LoRA adds and its gradients: at a hundredth it is silent, at "
    "a hundred it throws the weights about.",
    expected="1 to 2",
    source="LoRA (Hu et al. 2021): alpha is set once and not tuned",
    remedy="--set model.fusion.lora_alpha=RANK, so that alpha / r is 1",
)  # fmt: skip
def _lora(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    for component in ("fusion", "projector", "decoder", "other"):
        for r in facts.all("modules", "lora_scaling_min"):
            high = facts.value("modules", component, "lora_scaling_max", r.layer)
            if r.component != component or high is None:
                continue
            if r.value < limits.lora_low or high > limits.lora_high:
                severity = Severity.ERROR if r.value == 0 else None
                yield Hit(component, r.layer, f"alpha / r = {r.value:g} to {high:g}", severity)


@PARAMETERS.rule(
    "SP510", "A frozen part is in training mode", Link.ENCODER, Severity.WARNING, symptom=False,
    what="Dropouts and batch norms in training mode, as found, inside a part without trainable "
    "parameters; outside the encoder it is a note.",
    why="Dropout makes the same clip sound different at every step, and batch norms go on changing "
    "their statistics though their weights are frozen.",
    expected="evaluation mode in every frozen part",
    source="torch.nn.Module.train is recursive",
    remedy="override train() so that the frozen part stays in .eval()",
)  # fmt: skip
def _mode(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for r in facts.all("modules", "noisy_in_training"):
        if r.value and facts.value(_PAR, r.component, "trainable") == 0:
            severity = None if r.component == "encoder" else Severity.NOTE
            measured = f"{r.value:.0f} dropouts or batch norms in training mode"
            yield Hit(r.component, None, measured, severity)


def _has_optimizer(facts: Facts) -> bool:
    return facts.value(_PAR, "model", "in_optimizer") is not None
