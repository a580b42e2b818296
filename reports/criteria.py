"""The table of rules: every criterion of Phase 1, and which of them decide."""

from configs.claims import (
    BASELINE_CIDER,
    EXPECTED_CIDER,
    PARTIAL_FROM,
    STATED,
    TRAINING_HOURS,
    VERIFIED_ABOVE,
)
from probes.findings.finding import Link
from reports import from_probes, from_scores, from_training
from reports.criterion import Criterion
from reports.grade import AtLeast, Within

_PHASE1 = STATED["phase1"]
assert _PHASE1.memory is not None
_EVALUATE = "safe-train evaluate RUN"
_CHECK = "safe-probe check RUN --output RUN/check"
_TRAIN = "safe-train phase1"
_DYNAMICS = 'seed, "Training Dynamics"'
_SUCCESS = 'seed, "Success Criteria"'
_COUNTS = 'seed, "Parameter Count Breakdown"'
_OURS = "design: a score without its control is not evidence"


def _about(parameters: float) -> Within:
    """Within a tenth, in millions; as in SP506."""
    return Within(round(0.9e-6 * parameters, 2), round(1.1e-6 * parameters, 2), unit="M")


CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        "final_cider", "Final CIDEr", "after", True,
        AtLeast(VERIFIED_ABOVE, partial=PARTIAL_FROM, strict=True), _SUCCESS,
        "The seed's measure of success. Alone it proves nothing: see the controls.",
        _EVALUATE, from_scores.final_cider, Link.SCORE,
    ),
    Criterion(
        "hears_its_clip", "Better than with another clip's audio", "after", True,
        AtLeast(0.0, strict=True), _OURS,
        "The lower end of the 95% interval of own minus shuffled audio (CIDEr). Not above 0: the "
        "score comes from the captions' template.",
        _EVALUATE, from_scores.versus_shuffled, Link.SCORE,
    ),
    Criterion(
        "beats_constant", "Better than one constant caption", "after", True,
        AtLeast(0.0, strict=True), _OURS,
        "CIDEr above that of the commonest training caption, which hears nothing.",
        _EVALUATE, from_scores.versus_constant, Link.SCORE,
    ),
    Criterion(
        "audio_influence", "The audio changes the output", "after", True,
        AtLeast(2.0, partial=1.0, unit=" standard errors"), _OURS,
        "How much another clip's audio raises the loss on clips not trained on, over the standard "
        "error of that.",
        _CHECK, from_probes.influence, Link.INFLUENCE,
    ),
    Criterion(
        "open_findings", "No broken link", "after", True,
        Within(0, 0), "findings of level error, see `safe-probe list`",
        "An error says that a link of the signal path is broken: training on is a waste.",
        _CHECK, from_probes.open_errors,
    ),
    *(
        Criterion(
            f"cider_epoch_{epoch}", f"CIDEr after epoch {epoch}", "during", False,
            AtLeast(low), f"{_DYNAMICS}: {low:g}-{high:g}",
            "Whether the run is where the plan expected it.",
            f"{_TRAIN} --epochs {epoch}", from_training.cider_after(epoch, high),
        )
        for epoch, (low, high) in EXPECTED_CIDER.items()
    ),
    Criterion(
        "loss_drop", "Sharp loss drop in the first 2 epochs", "during", False,
        AtLeast(25, partial=10, unit="%"), _DYNAMICS,
        "Share of the first loss that is gone after 2 epochs. A model that hears nothing learns "
        "the captions' language and drops as well: no evidence of hearing.",
        f"{_TRAIN} --epochs 2", from_training.loss_drop,
    ),
    Criterion(
        "gradients", "Gradients reach projector and fusion", "during", False,
        AtLeast(99, partial=50, unit="%"), 'seed, "Verification Checklist"',
        "Share of steps with a finite gradient above 0, the worse of the two.",
        _TRAIN, from_training.gradients,
    ),
    Criterion(
        "baseline", "Better than the baseline", "after", False,
        AtLeast(0.0, strict=True), f'seed, "Verification Checklist": was {BASELINE_CIDER:g}',
        "CIDEr above the baseline's: the lower end of the paired 95% interval when both runs are "
        "there; else, on AudioCaps' test split, the plain difference to the stated score.",
        "safe-probe report RUN --baseline BASELINE_RUN", from_scores.versus_baseline,
    ),
    Criterion(
        "contribution", "Audio visible next to the text", "before", False,
        Within(0.1, 0.3, slack=3.4),
        "a real run: 0.1-0.3 at the start, below 1 always, nearly silent at 0.03",
        "||gate x branch|| / ||hidden|| at the start, the worst fusion layer: too little is not "
        "heard, too much drowns the text.",
        _CHECK, from_probes.contribution,
    ),
    Criterion(
        "gates", "Gates open and learning", "after", False,
        AtLeast(100, partial=50, unit="%"), 'seed, "Fusion Adapter Initialization"',
        "Share of gates that are open, trainable and, in a trained run, have moved.",
        _CHECK, from_probes.gates,
    ),
    Criterion(
        "parity", "Gate off gives the bare backbone", "after", False,
        Within(0, 0), _OURS,
        "Share of logits that differ in any bit from the backbone's own with all gates at 0: "
        "otherwise 'without audio' is no reference.",
        _CHECK, from_probes.parity,
    ),
    Criterion(
        "specificity", "Captions are specific", "after", False,
        AtLeast(50, partial=25, unit="%"), 'seed, "Verification Checklist": sample captions',
        "1 minus the rate of generic captions: those that another clip has too, or that hold no "
        "word used in fewer than a fifth of the captions.",
        _EVALUATE, from_scores.specificity,
    ),
    Criterion(
        "trainable", "Trainable parameters", "before", False,
        _about(_PHASE1.trainable), f"{_COUNTS}: about 380M",
        "Whether the model is the size that was announced.",
        "safe-probe params --config phase1", from_training.parameters("trainable"),
    ),
    Criterion(
        "projector_size", "Projector parameters", "before", False,
        _about(_PHASE1.projector), f"{_COUNTS}: 168M",
        "As above, for the projector.",
        "safe-probe params --config phase1", from_training.parameters("projector"),
    ),
    Criterion(
        "lora_size", "LoRA parameters", "before", False,
        _about(_PHASE1.lora), f"{_COUNTS}: 10.5M",
        "As above, for the fusion's LoRA.",
        "safe-probe params --config phase1", from_training.parameters("lora"),
    ),
    Criterion(
        "hours", "Training time", "during", False,
        Within(*TRAINING_HOURS, slack=1.5, unit=" h"), f"{_DYNAMICS}: 20 epochs of 13B, one GPU",
        "Whether the run costs what was planned.",
        _TRAIN, from_training.hours,
    ),
    Criterion(
        "memory", "GPU memory", "during", False,
        Within(_PHASE1.memory[0] / 1e9, _PHASE1.memory[1] / 1e9, slack=1.1, unit=" GB"),
        _DYNAMICS,
        "Whether the run fits where it was planned to.",
        _TRAIN, from_training.memory,
    ),
)  # fmt: skip
"""Every criterion, those that decide first."""
