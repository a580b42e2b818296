"""SP7: whether the score comes from the sound."""

import math
from collections.abc import Iterator

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Link, Severity
from probes.findings.rule import Family
from probes.findings.thresholds import Thresholds

SCORES = Family(
    "SP7",
    "Scores",
    "Whether a score can be believed: against controls that hear something else, and against "
    "captions that hear nothing. CIDEr is CIDEr-D x 100.",
)
_S = "scores"


@SCORES.rule(
    "SP701", "The score does not come from the sound", Link.SCORE, Severity.ERROR,
    what="CIDEr with the own audio minus that with another clip's, paired over clips; fires when "
    "the 95% interval does not lie above 0.",
    why="A template scores without listening; such a score verifies nothing, however high.",
    expected="a difference whose whole interval is above 0",
    source="design: verified means significantly better than with another clip's audio",
    remedy="run `safe-probe check RUN` and mend the first link that is broken before the score; "
    "where none is, train longer, or score more clips",
)  # fmt: skip
def _shuffled(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    low = facts.value(_S, "score", "versus_shuffled_low")
    if low is not None and not low > 0:
        mean, high = (facts.value(_S, "score", f"versus_shuffled{end}") for end in ("", "_high"))
        words = f"{mean:+.1f} " if mean is not None else ""
        upper = f"{high:+.1f}" if high is not None else "?"
        yield Hit("score", None, f"{words}[95% {low:+.1f}, {upper}]")


@SCORES.rule(
    "SP702", "A caption that hears nothing scores as well", Link.SCORE, Severity.WARNING,
    what="CIDEr against that of the commonest training caption, same clips ({constant_caption:g} "
    "where that was not scored); fires when it is not higher.",
    why="The model is no better than one fixed sentence.",
    expected="above the constant caption",
    source="best constant caption on AudioCaps' test split: 15.6",
    remedy="train longer only after the signal path is healthy (`safe-probe check RUN`)",
)  # fmt: skip
def _constant(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    score = facts.value(_S, "score", "cider")
    floor = facts.value(_S, "score", "commonest_caption")
    floor = limits.constant_caption if floor is None else floor
    if score is not None and score <= floor:
        yield Hit("score", None, f"CIDEr {score:.1f}, constant caption {floor:.1f}")


@SCORES.rule(
    "SP703", "One caption for most clips", Link.SCORE, Severity.WARNING,
    what="Share of clips that get the commonest generated caption; fires from {copied_caption:g} "
    "on.",
    why="The model has found the sentence that is least wrong on average.",
    expected="below {copied_caption:g}",
    source="definition of a blind captioner",
    remedy="see influence (SP406-SP408) for why it does not listen",
)  # fmt: skip
def _one_caption(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_S, "score", "commonest_share")
    if share is not None and share >= limits.copied_caption:
        yield Hit("score", None, f"{share:.1%} of the clips get the same caption")


@SCORES.rule(
    "SP704", "The score is not a number", Link.SCORE, Severity.ERROR,
    what="CIDEr; fires when it is NaN or infinite.",
    why="It passes no criterion and fails none: nothing can be concluded.",
    expected="a finite score",
    source="arithmetic; the idf of one clip is undefined",
    remedy="evaluate at least two clips with references",
)  # fmt: skip
def _nan(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    score = facts.value(_S, "score", "cider")
    if score is not None and not math.isfinite(score):
        yield Hit("score", None, f"CIDEr {score}")


@SCORES.rule(
    "SP705", "Too few clips for this score", Link.CLAIM, Severity.NOTE, symptom=False,
    what="Width of the score's 95% interval; fires when it is wider than half the score.",
    why="The score of another sample of clips could as well be on the other side of a threshold.",
    expected="an interval narrower than half the score",
    source="bootstrap over clips",
    remedy="evaluate more clips (evaluation.eval_clips); four times as many halve the interval",
)  # fmt: skip
def _wide(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    score = facts.value(_S, "score", "cider")
    low, high = (facts.value(_S, "score", f"cider_{end}") for end in ("low", "high"))
    if score and low is not None and high is not None and high - low > 0.5 * score:
        clips = facts.value(_S, "score", "clips") or 0
        yield Hit("score", None, f"{score:.1f} [95% {low:.1f}, {high:.1f}] on {clips:.0f} clips")


@SCORES.rule(
    "SP706", "The nearest neighbour's caption scores better", Link.SCORE, Severity.NOTE,
    what="CIDEr of the caption of the nearest training embedding, which needs no language model.",
    why="The embeddings hold more than the model takes out of them.",
    expected="a trained model above retrieval",
    source="a real run: nearest neighbour 307, best model 286",
    remedy="train longer, once the signal path is healthy (`safe-probe check RUN`)",
)  # fmt: skip
def _neighbour(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    score = facts.value(_S, "score", "cider")
    neighbour = facts.value(_S, "score", "nearest_neighbour")
    if score is not None and neighbour is not None and score < neighbour:
        yield Hit("score", None, f"CIDEr {score:.1f}, nearest neighbour {neighbour:.1f}")


@SCORES.rule(
    "SP707", "The score survives a shut gate", Link.SCORE, Severity.ERROR,
    what="CIDEr with the gate at 0 against that with the own audio; fires when it is as high.",
    why="Without the signal the captions are as good: they never came from it.",
    expected="a clearly lower score without the signal",
    source="definition of the control",
    remedy="run `safe-probe check RUN`; look for captions in the prompt",
)  # fmt: skip
def _gate_off(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    score = facts.value(_S, "score", "cider")
    shut = facts.value(_S, "score", "gate_off")
    if score is not None and shut is not None and shut >= score > 0:
        yield Hit("score", None, f"CIDEr {shut:.1f} with the gate at 0, {score:.1f} with it open")
