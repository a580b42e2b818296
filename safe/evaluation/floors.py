"""What a score must be read against: captions that never hear, another clip's audio, counts."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import MetricError
from safe.evaluation.text import clean_caption, simple_tokens

# Words that say how events relate, not which events there are.
_STOPWORDS = """
a an the this that these those it its 's he she they them his her their there here who which what
is are was were be been being am do does did has have had can could will would may might
and or but nor not no so as if than then while when where whilst during before after until since
of in on at to from by with without into onto over under up down out off for about around against
along through across between behind beside near nearby among amongst within throughout upon
some several multiple many few more most other another each both all any one two three
followed follows following also again very soon once
"""
STOPWORDS = frozenset(_STOPWORDS.split())


def commonest_caption(captions: Iterable[str]) -> str:
    """The most frequent caption, case and punctuation aside, as first spelled; ties: the first.

    Raises:
        MetricError: no captions.
    """
    spelling: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for caption in captions:
        key = " ".join(simple_tokens(caption))
        spelling.setdefault(key, clean_caption(caption))
        counts[key] += 1
    if not counts:
        raise MetricError("the commonest caption is undefined: there are no training captions")
    return spelling[counts.most_common(1)[0][0]]


def nearest_neighbour(
    train_embeddings: ArrayLike, train_captions: Sequence[str], test_embeddings: ArrayLike
) -> list[str]:
    """For each test clip the caption of the training clip with the most similar embedding (cosine).

    Args:
        train_embeddings: [n, D], row i belongs to train_captions[i].
        train_captions: n captions.
        test_embeddings: [m, D].

    Returns:
        m captions; ties go to the first training clip.

    Raises:
        MetricError: shapes that do not fit, no training clip, a NaN or zero embedding.
    """
    train = _unit_rows(train_embeddings, "train_embeddings")
    test = _unit_rows(test_embeddings, "test_embeddings")
    if len(train) != len(train_captions) or not len(train):
        raise MetricError(
            f"nearest neighbour needs one caption per training clip and at least one clip; "
            f"got {len(train)} embeddings and {len(train_captions)} captions"
        )
    if train.shape[1] != test.shape[1]:
        raise MetricError(
            f"train and test embeddings differ in width: {train.shape[1]} and {test.shape[1]}; "
            "they must come from the same audio encoder"
        )
    # In blocks: 50,000 x 1,000 similarities at once would be 200 MB.
    nearest = [
        index
        for start in range(0, len(test), 256)
        for index in (test[start : start + 256] @ train.T).argmax(axis=1)
    ]
    return [train_captions[index] for index in nearest]


def _unit_rows(embeddings: ArrayLike, name: str) -> NDArray[np.float32]:
    """The rows of `embeddings` scaled to length 1."""
    array = np.asarray(embeddings, dtype=np.float32)
    if array.ndim != 2:
        raise MetricError(f"{name} must be [clips, width], got shape {array.shape}")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise MetricError(f"{name}[{bad[0]}] is zero or not finite: it has no direction to compare")
    unit: NDArray[np.float32] = array / norms
    return unit


def shuffle_pairs(
    keys: Sequence[Hashable | Collection[Hashable]], seed: int = 0
) -> NDArray[np.int64]:
    """For each clip another whose audio it shall hear: a random permutation without look-alikes.

    Args:
        keys: per clip what identifies its content: one label, or a list, tuple or set of labels
            (say the audio's hash and its captions). Clips that share a label are never paired,
            nor is a clip with itself.
        seed: of the permutation.

    Returns:
        [n]: clip i hears the audio of clip result[i]; every clip's audio is heard exactly once.

    Raises:
        MetricError: no such permutation exists (too many clips share a label).
    """
    n = len(keys)
    holders: dict[Hashable, set[int]] = {}
    labels: list[set[Any]] = [
        set(key) if isinstance(key, list | tuple | set | frozenset) else {key} for key in keys
    ]
    for clip, own in enumerate(labels):
        for label in own:
            holders.setdefault(label, set()).add(clip)
    alike = [{clip}.union(*(holders[label] for label in own)) for clip, own in enumerate(labels)]
    rng = np.random.default_rng(seed)
    heard_by: dict[int, int] = {}  # audio -> clip
    for clip in rng.permutation(n).tolist():
        order = rng.permutation(n).tolist()
        if not _match(clip, order, alike, heard_by):
            raise MetricError(
                f"the {n} clips cannot all hear another clip's audio: too many have the same "
                f"content (clip {clip} resembles {len(alike[clip]) - 1}); use more varied clips"
            )
    result = np.empty(n, dtype=np.int64)
    for audio, clip in heard_by.items():
        result[clip] = audio
    return result


def _match(
    clip: int, order: Sequence[int], alike: Sequence[set[int]], heard_by: dict[int, int]
) -> bool:
    """Give `clip` an audio, moving earlier clips along a shortest augmenting path (matching)."""
    reached: dict[int, int] = {}  # audio -> the clip that would take it
    queue = deque([clip])
    while queue:
        taker = queue.popleft()
        for audio in order:
            if audio in reached or audio in alike[taker]:
                continue
            reached[audio] = taker
            if audio in heard_by:
                queue.append(heard_by[audio])
                continue
            free: int | None = audio
            while free is not None:  # walk back, handing each audio to the clip that reached it
                taker = reached[free]
                before = next((a for a, c in heard_by.items() if c == taker), None)
                heard_by[free] = taker
                free = before
            return True
    return False


def event_word_recall(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    words: Collection[str] | None = None,
) -> float:
    """Share of the agreed event words of all clips that the predictions contain, 0 to 1.

    A clip's event words are those that at least two of its references hold (its only reference,
    when it has one) and that are in `words`, or, without `words`, are not in `STOPWORDS`. Words are
    tokens of `simple_tokens` with a letter or digit, compared as they are (no stemming). Pooled
    over clips: hits / event words.

    Raises:
        MetricError: different ids, or no event word at all.
    """
    if set(predictions) != set(references):
        odd = sorted(set(predictions) ^ set(references))
        raise MetricError(
            "predictions and references must have the same ids; "
            f"{len(odd)} differ, first {odd[0]!r}"
        )
    hits = total = 0
    for clip_id, captions in references.items():
        counts = Counter(word for text in captions for word in set(simple_tokens(text)))
        agreed = {word for word, count in counts.items() if count >= min(2, len(captions))}
        events = agreed & set(words) if words is not None else agreed - STOPWORDS
        events = {word for word in events if any(map(str.isalnum, word))}
        hits += len(events & set(simple_tokens(predictions[clip_id])))
        total += len(events)
    if not total:
        raise MetricError(
            "event-word recall is undefined: no word is shared by two references of any clip"
        )
    return hits / total


@dataclass(frozen=True)
class Diversity:
    """How varied a set of captions is; a model that never listens says the same everywhere."""

    distinct: float
    """Distinct captions / captions, 0 to 1 (case and punctuation aside)."""
    vocabulary: int
    """Distinct words over all captions."""
    commonest_share: float
    """Share of clips that got the commonest caption, 0 to 1."""
    commonest: str
    """That caption."""


def caption_diversity(predictions: Iterable[str]) -> Diversity:
    """Distinct share, vocabulary and commonest caption of the predictions.

    Raises:
        MetricError: no predictions.
    """
    texts = list(predictions)
    if not texts:
        raise MetricError("diversity is undefined: there are no predictions")
    counts = Counter(" ".join(simple_tokens(text)) for text in texts)
    return Diversity(
        distinct=len(counts) / len(texts),
        vocabulary=len({word for key in counts for word in key.split()}),
        commonest_share=max(counts.values()) / len(texts),
        commonest=commonest_caption(texts),
    )
