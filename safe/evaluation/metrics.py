"""CIDEr-D, BLEU, METEOR and ROUGE-L of a whole split at once, by pycocoevalcap's scorers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import precook
from pycocoevalcap.rouge.rouge import Rouge

from configs.errors import MetricError, did_you_mean
from safe.evaluation.bootstrap import bootstrap_interval
from safe.evaluation.meteor import meteor
from safe.evaluation.text import choose_tokenizer, tokenize

METRICS = ("cider", "bleu", "meteor", "rouge")


@dataclass(frozen=True)
class Scores:
    """What one set of predictions scored on one split; a metric that was not asked for is None."""

    cider: float
    """CIDEr-D x 100, mean over clips; idf from the references of the whole split."""
    cider_interval: tuple[float, float]
    """95% bootstrap interval of `cider` over clips, idf held fixed."""
    per_clip_cider: dict[str, float]
    """Clip id -> CIDEr-D x 100, in the order of the references."""
    bleu_1: float | None
    """Corpus BLEU up to 1-grams, 0 to 1, closest reference length."""
    bleu_2: float | None
    """Corpus BLEU up to 2-grams, 0 to 1."""
    bleu_3: float | None
    """Corpus BLEU up to 3-grams, 0 to 1."""
    bleu_4: float | None
    """Corpus BLEU up to 4-grams, 0 to 1."""
    meteor: float | None
    """Corpus METEOR 1.5, 0 to 1; None with `meteor_reason` where it could not be computed."""
    meteor_reason: str | None
    """Why `meteor` is None although it was asked for; else None."""
    rouge_l: float | None
    """Mean ROUGE-L F (beta 1.2), 0 to 1."""
    tokenizer: str
    """"ptb" or "simple": what both sides went through."""
    n_clips: int
    """Clips scored."""
    n_references: int
    """References of those clips, all together."""
    empty_predictions: int
    """Predictions without a single token; each scores 0."""

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain JSON values (the interval as a list)."""
        return {**asdict(self), "cider_interval": list(self.cider_interval)}


class Scorer:
    """The references of one split, checked and tokenized once, to score many predictions with."""

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        tokenizer: str = "auto",
        n_resamples: int = 1000,
    ) -> None:
        """Check and tokenize the references.

        Args:
            references: clip id -> its captions (at least one each).
            tokenizer: "ptb", "simple", or "auto" (PTB where Java runs).
            n_resamples: bootstrap resamples of each CIDEr interval.

        Raises:
            MetricError: the split cannot be scored (empty, one clip, a clip without a usable
                reference, all clips with the same references), or the tokenizer cannot run.
        """
        _check_references(references)
        self.tokenizer = choose_tokenizer(tokenizer)
        self.n_resamples = n_resamples
        self.references = tokenize(references, self.tokenizer)
        _check_documents(self.references)

    def score(self, predictions: Mapping[str, str], metrics: Sequence[str] = METRICS) -> Scores:
        """Score one prediction per clip of the split.

        Args:
            predictions: clip id -> caption, exactly the ids of the references; may be empty text.
            metrics: which of `METRICS`; must hold "cider".

        Raises:
            MetricError: unknown metric, missing or unknown clip ids, a prediction that is not text.
        """
        _check_metrics(metrics)
        _check_predictions(predictions, self.references)
        tokens = tokenize({key: [predictions[key]] for key in self.references}, self.tokenizer)
        _, per_clip = Cider().compute_score(self.references, tokens)
        per_clip = 100.0 * np.asarray(per_clip, dtype=np.float64)
        bleu: Sequence[float | None] = [None] * 4
        if "bleu" in metrics:
            bleu = Bleu().compute_score(self.references, tokens, verbose=0)[0]
        rouge = None
        if "rouge" in metrics:
            rouge = float(Rouge().compute_score(self.references, tokens)[0])
        meteor_score, reason = None, None
        if "meteor" in metrics:
            meteor_score, reason = meteor(self.references, {key: t[0] for key, t in tokens.items()})
        return Scores(
            cider=float(per_clip.mean()),
            cider_interval=bootstrap_interval(per_clip, self.n_resamples),
            per_clip_cider=dict(zip(tokens, per_clip.tolist(), strict=True)),
            bleu_1=bleu[0],
            bleu_2=bleu[1],
            bleu_3=bleu[2],
            bleu_4=bleu[3],
            meteor=meteor_score,
            meteor_reason=reason,
            rouge_l=rouge,
            tokenizer=self.tokenizer,
            n_clips=len(tokens),
            n_references=sum(map(len, self.references.values())),
            empty_predictions=sum(not t[0] for t in tokens.values()),
        )


def score(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tokenizer: str = "auto",
    metrics: Sequence[str] = METRICS,
) -> Scores:
    """Score one prediction set; see `Scorer`, which does it for many and raises the same errors."""
    _check_metrics(metrics)
    return Scorer(references, tokenizer).score(predictions, metrics)


def _check_metrics(metrics: Sequence[str]) -> None:
    for name in metrics:
        if name not in METRICS:
            known = ", ".join(METRICS)
            raise MetricError(
                f"unknown metric {name!r}{did_you_mean(name, METRICS)}; known: {known}"
            )
    if "cider" not in metrics:
        raise MetricError(
            f"metrics must hold 'cider', the score the verdict rests on; got {list(metrics)}"
        )


def _check_references(references: Mapping[str, Sequence[str]]) -> None:
    """A split of at least two clips with at least one text reference each."""
    if not references:
        raise MetricError("the split is empty: there is no clip to score")
    if len(references) == 1:
        raise MetricError(
            f"CIDEr is undefined for a single clip ({next(iter(references))!r}): its word weights "
            "come from comparing clips; score the whole split at once"
        )
    for clip_id, captions in references.items():
        if isinstance(captions, str):
            raise MetricError(
                f"the references of clip {clip_id!r} must be a list of captions, got one text"
            )
        if not captions:
            raise MetricError(
                f"clip {clip_id!r} has no reference; give it one or leave it out of the split"
            )
        for caption in captions:
            if not isinstance(caption, str):
                raise MetricError(f"a reference of clip {clip_id!r} is not text but {caption!r}")


def _check_documents(tokens: Mapping[str, Sequence[str]]) -> None:
    """No reference without a word, not the same n-grams in all clips (every idf would be 0)."""
    for clip_id, captions in tokens.items():
        if not all(captions):
            raise MetricError(
                f"clip {clip_id!r} has a reference without a word (empty or only punctuation); "
                "remove it"
            )
    documents = {
        frozenset(n for text in captions for n in precook(text)) for captions in tokens.values()
    }
    if len(documents) == 1:
        raise MetricError(
            f"CIDEr is undefined: all {len(tokens)} clips have the same references, so no word "
            "tells one clip from another (every idf is zero)"
        )


def _check_predictions(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> None:
    missing = [key for key in references if key not in predictions]
    extra = [key for key in predictions if key not in references]
    if missing or extra:
        parts = [
            f"{len(keys)} {what} (first: {keys[0]!r})"
            for keys, what in (
                (missing, "clips have no prediction"),
                (extra, "predictions have no clip"),
            )
            if keys
        ]
        raise MetricError(f"predictions and references do not match: {'; '.join(parts)}")
    for clip_id, caption in predictions.items():
        if not isinstance(caption, str):
            raise MetricError(f"the prediction of clip {clip_id!r} is not text but {caption!r}")
