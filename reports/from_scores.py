"""What the scores and captions of a run say, for the criteria. CIDEr is CIDEr-D x 100."""

import math
import re
from collections import Counter
from collections.abc import Iterable

from configs.claims import BASELINE_CIDER, PARTIAL_FROM, VERIFIED_ABOVE
from reports.criterion import Measurement
from reports.paired import paired_difference
from reports.run import Run

OWN = "own audio"
_COMMON = 0.2
"""A word in more than this share of the captions tells nothing about its clip."""


def final_cider(run: Run) -> Measurement | None:
    """The score of the whole split, with its interval and whether that straddles a threshold."""
    score = _score(run, "cider")
    if score is None:
        return None
    low, high, clips = (_score(run, name) for name in ("cider_low", "cider_high", "clips"))
    if low is None or high is None or not clips or not math.isfinite(score):
        return Measurement(score, f"{score:.1f}, without an interval", f"{score:.1f}")
    text = f"{score:.1f} [95% {low:.1f}, {high:.1f}] on {clips:.0f} clips"
    for limit in (VERIFIED_ABOVE, PARTIAL_FROM):
        if low <= limit <= high:
            needed = _clips_needed(score, low, high, clips, limit)
            text += f"; the interval straddles {limit:g}: {needed}"
    return Measurement(score, text, f"{score:.1f} [{low:.1f}, {high:.1f}]")


def _clips_needed(score: float, low: float, high: float, clips: float, limit: float) -> str:
    """How many more clips would settle it: the width shrinks with the root of their number."""
    if score == limit:
        return "no number of clips settles it, the score lies on the threshold"
    reach = (score - low) if limit < score else (high - score)
    needed = clips * (reach / abs(score - limit)) ** 2
    return f"about {max(1, math.ceil(needed - clips)):,} more clips would settle it"


def versus_shuffled(run: Run) -> Measurement | None:
    """Lower end of the paired interval of own minus another clip's audio."""
    mean, low, high = (_score(run, f"versus_shuffled{s}") for s in ("", "_low", "_high"))
    if mean is None or low is None or high is None:
        return None
    if not low <= mean <= high:
        return Measurement(None, f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] is no interval")
    text = f"{mean:+.1f} CIDEr [95% {low:+.1f}, {high:+.1f}]"
    return Measurement(low, text, f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]")


def versus_constant(run: Run) -> Measurement | None:
    """Score minus that of the commonest training caption."""
    score, floor = _score(run, "cider"), _score(run, "commonest_caption")
    if score is None or floor is None:
        return None
    return Measurement(
        score - floor,
        f"{score:.1f}, the caption {floor:.1f}",
        f"{score - floor:+.1f}",
    )


def versus_baseline(run: Run) -> Measurement | None:
    """Against the baseline run, paired over clips, or on AudioCaps' test split its stated 18."""
    score = _score(run, "cider")
    if score is None:
        return None
    if run.baseline is not None:
        return _versus_run(run, run.baseline)
    placement = run.evaluation.get("public_scale")
    if not (isinstance(placement, dict) and placement.get("comparable") is True):
        return Measurement(
            None, f"no baseline run was given, and the stated {BASELINE_CIDER:g} is of other clips"
        )
    gain = score - BASELINE_CIDER
    text = (
        f"CIDEr {score:.1f} against the stated {BASELINE_CIDER:g}, which is of another run: "
        "compare with a baseline of your own"
    )
    return Measurement(gain, text, f"{gain:+.1f}")


def _versus_run(run: Run, baseline: Run) -> Measurement:
    ours, theirs = run.per_clip_cider, baseline.per_clip_cider
    if not theirs:
        return Measurement(None, f"the baseline {baseline.name} has no final score")
    # idf comes from the references of the scored set, so the sets must be the same
    if set(ours) != set(theirs) or run.scores["tokenizer"] != baseline.scores["tokenizer"]:
        return Measurement(None, f"{baseline.name} was not scored on the same clips")
    gap = paired_difference(theirs, ours)
    return Measurement(gap.low, f"{gap} CIDEr against {baseline.name}, {gap.clips} clips", str(gap))


def specificity(run: Run) -> Measurement | None:
    """Percentage of captions that say something about their clip alone."""
    captions = [row[OWN] for row in run.captions.values() if isinstance(row.get(OWN), str)]
    if not captions:
        return None
    words = [set(re.findall(r"\w+", caption.lower())) for caption in captions]
    distinct = len({" ".join(caption.lower().split()) for caption in captions})
    commonest = max(Counter(captions).values()) / len(captions)
    generic = generic_rate(captions)
    text = (
        f"{generic:.0%} generic; {distinct} distinct of {len(captions)} captions, vocabulary "
        f"{len(set().union(*words))}, the commonest one for {commonest:.0%} of the clips"
    )
    return Measurement(100 * (1 - generic), text, f"{1 - generic:.0%}")


def generic_rate(captions: Iterable[str]) -> float:
    """Share of captions that another clip has too, or that hold only words of a fifth of all."""
    texts = [" ".join(caption.lower().split()) for caption in captions]
    words = [set(re.findall(r"\w+", text)) for text in texts]
    in_captions = Counter(word for found in words for word in found)
    times = Counter(texts)
    limit = max(1.0, _COMMON * len(texts))  # in a handful of captions every word is rare
    generic = [
        times[text] > 1 or all(in_captions[word] > limit for word in found)
        for text, found in zip(texts, words, strict=True)
    ]
    return sum(generic) / len(generic)


def _score(run: Run, statistic: str) -> float | None:
    return run.facts.value("scores", "score", statistic)
