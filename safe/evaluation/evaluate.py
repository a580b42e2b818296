"""A score with everything needed to believe it: controls, floors, interval, recall, diversity."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from configs.errors import MetricError
from configs.schema import EvalConfig
from safe import processes
from safe.data.mapped_rows import MappedRows
from safe.data.splits import Split
from safe.evaluation.bootstrap import Difference, paired_difference
from safe.evaluation.floors import (
    Diversity,
    caption_diversity,
    commonest_caption,
    event_word_recall,
    nearest_neighbour,
    shuffle_pairs,
)
from safe.evaluation.generation import generate_captions
from safe.evaluation.metrics import METRICS, Scorer, Scores
from safe.evaluation.public_scale import Placement, place
from safe.evaluation.unscored import Unscored
from safe.evaluation.verdict import Verdict, decide
from safe.models.safe_model import SAFEModel
from safe.training.batches import CaptionTokens

Progress = Callable[[str, int, int], None]
"""Called with (what, clips done, clips in all)."""

SHUFFLED, SILENCE, GATE_OFF = "another clip's audio", "silence", "gate 0"
COMMONEST, NEIGHBOUR = "commonest caption", "nearest neighbour"


@dataclass(frozen=True)
class Evaluation:
    """Everything measured on one split."""

    split: str
    """Split name."""
    scores: Scores
    """Of the captions that heard their own clip."""
    controls: dict[str, Scores]
    """Same model, wrong sound: another clip's audio, silence, gate 0 (CIDEr only)."""
    floors: dict[str, Scores]
    """No model: commonest training caption, nearest neighbour's training caption (CIDEr only)."""
    versus_shuffled: Difference
    """CIDEr x 100, own audio minus another clip's, paired over clips, 95% interval."""
    event_recall: float
    """Share of the event words agreed on by the references that the captions contain, 0 to 1."""
    diversity: Diversity
    """How varied the captions are."""
    captions: dict[str, dict[str, str]]
    """Clip id to caption, for "own audio" and every control and floor."""
    verdict: Verdict
    """By the seed's table, and only when the score comes from the sound."""
    public_scale: Placement
    """Beside published scores, where it can be compared with them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the captions (they have a file of their own)."""
        return {
            "split": self.split,
            "scores": self.scores.to_dict(),
            "controls": {name: s.to_dict() for name, s in self.controls.items()},
            "floors": {name: s.to_dict() for name, s in self.floors.items()},
            "versus_shuffled": asdict(self.versus_shuffled),
            "event_recall": self.event_recall,
            "diversity": asdict(self.diversity),
            "verdict": asdict(self.verdict),
            "public_scale": asdict(self.public_scale),
        }


class Evaluator:
    """Scores a model on one split; references are tokenised once.

    Several processes share the captioning, so all of them must call what captions; the first one
    scores.

    Args:
        tokens: tokenizer and prompt, as in training.
        split: the clips to score.
        config: decoding and bootstrap settings.
        seed: of the shuffled-audio pairing.
        in_step: every process must run the same number of forward passes (sharded backbone).
    """

    def __init__(
        self,
        tokens: CaptionTokens,
        split: Split,
        config: EvalConfig,
        seed: int = 0,
        *,
        in_step: bool = False,
    ) -> None:
        self.tokens, self.split, self.config, self.seed = tokens, split, config, seed
        self.in_step = in_step
        self.scorer = Scorer(split.references, n_resamples=config.bootstrap)

    @cached_property
    def pairing(self) -> np.ndarray:
        """[n] for each clip another clip, with other audio and other captions.

        Raises:
            MetricError: the split has too few different clips for that.
        """
        keys = zip(self.split.audio_keys, self.split.captions, strict=True)
        return shuffle_pairs([{audio, *captions} for audio, captions in keys], seed=self.seed)

    def check(self, train: Split) -> None:
        """Find out, before any training, whether :meth:`full` can be done on this split.

        Raises:
            MetricError: a control, a floor or a measure is undefined for it.
        """
        _ = self.pairing
        self._floors(train)
        references = self.split.references
        event_word_recall({clip: texts[0] for clip, texts in references.items()}, references)

    def quick(
        self, model: SAFEModel, progress: Progress | None = None
    ) -> tuple[Scores, dict[str, str]] | None:
        """CIDEr and captions with the clips' own audio, for the course of a training.

        None in all processes but the first.
        """
        captions = self._captions(model, self.split.embeddings, "own audio", progress)
        if processes.rank() > 0:
            return None
        return self.scorer.score(captions, metrics=("cider",)), captions

    def full(
        self,
        model: SAFEModel,
        train: Split,
        silence: np.ndarray,
        progress: Progress | None = None,
        unscored: Unscored | None = None,
    ) -> Evaluation | None:
        """All metrics, controls and floors; None in all processes but the first.

        Args:
            model: a trained model.
            train: training split, for the floors.
            silence: [D] embedding ([M, D] local features) of a silent clip.
            progress: called during generation, in every process.
            unscored: where captions are kept until the scores are written; those that wait there
                are scored, and not generated again. The first process's counts.

        Raises:
            MetricError: the scorer failed; there is no score of a part.
        """
        captions = unscored.load() if unscored else None
        if processes.gather(captions)[0] is None:
            captions = self._speak(model, silence, progress)
        if processes.rank() > 0:
            return None
        assert captions is not None
        if unscored is None:
            return self._judge(captions | self._floors(train))
        unscored.keep(captions)
        try:
            return self._judge(captions | self._floors(train))
        except MetricError as error:
            raise MetricError(
                f"{error} The captions are kept in {unscored.path}; `safe-train evaluate RUN` goes "
                "on with them"
            ) from error

    def _speak(
        self, model: SAFEModel, silence: np.ndarray, progress: Progress | None
    ) -> dict[str, dict[str, str]]:
        """Captions by condition and clip id."""
        split = self.split
        heard = {"own audio": split.embeddings, SHUFFLED: split.embeddings[self.pairing]}
        alike = {SILENCE: silence, GATE_OFF: None}
        return {
            **{n: self._captions(model, audio, n, progress) for n, audio in heard.items()},
            **{n: self._same_for_all(model, audio, n, progress) for n, audio in alike.items()},
        }

    def _judge(self, captions: dict[str, dict[str, str]]) -> Evaluation:
        """Score every condition."""
        split = self.split
        scores = self.scorer.score(captions["own audio"], metrics=METRICS)
        others = {
            name: self.scorer.score(captions[name], metrics=("cider",))
            for name in (SHUFFLED, SILENCE, GATE_OFF, COMMONEST, NEIGHBOUR)
        }
        difference = paired_difference(
            list(scores.per_clip_cider.values()),
            list(others[SHUFFLED].per_clip_cider.values()),
            n_resamples=self.config.bootstrap,
        )
        return Evaluation(
            split=split.name,
            scores=scores,
            controls={name: others[name] for name in (SHUFFLED, SILENCE, GATE_OFF)},
            floors={name: others[name] for name in (COMMONEST, NEIGHBOUR)},
            versus_shuffled=difference,
            event_recall=event_word_recall(captions["own audio"], split.references),
            diversity=caption_diversity(captions["own audio"].values()),
            captions=captions,
            verdict=decide(scores.cider, difference),
            public_scale=place(scores.cider, split.references),
        )

    def _captions(
        self,
        model: SAFEModel,
        embeddings: np.ndarray | MappedRows | None,
        what: str,
        progress: Progress | None,
    ) -> dict[str, str]:
        texts = self._generate(model, embeddings, self.split.seconds, what, progress)
        return dict(zip(self.split.clip_ids, texts, strict=True))

    def _same_for_all(
        self, model: SAFEModel, audio: np.ndarray | None, what: str, progress: Progress | None
    ) -> dict[str, str]:
        """One caption for each length of clip: where all hear the same, nothing else tells them."""
        lengths, which = np.unique(self.split.seconds, return_inverse=True)
        heard = None if audio is None else np.broadcast_to(audio, (len(lengths), *audio.shape))
        texts = self._generate(model, heard, lengths, what, progress)
        return {clip: texts[i] for clip, i in zip(self.split.clip_ids, which, strict=True)}

    def _generate(
        self,
        model: SAFEModel,
        embeddings: np.ndarray | MappedRows | None,
        seconds: np.ndarray,
        what: str,
        progress: Progress | None,
    ) -> list[str]:
        total = len(seconds)
        return generate_captions(
            model,
            self.tokens,
            embeddings,
            seconds,
            self.config,
            share=True,
            in_step=self.in_step,
            progress=None if progress is None else lambda done: progress(what, done, total),
        )

    def _floors(self, train: Split) -> dict[str, dict[str, str]]:
        """Captions that need no training: the commonest one, and the nearest neighbour's."""
        every: Sequence[str] = [text for texts in train.captions for text in texts]
        first = [texts[0] for texts in train.captions]
        neighbours = nearest_neighbour(train.pooled, first, self.split.pooled)
        ids = self.split.clip_ids
        return {
            COMMONEST: dict.fromkeys(ids, commonest_caption(every)),
            NEIGHBOUR: dict(zip(ids, neighbours, strict=True)),
        }
