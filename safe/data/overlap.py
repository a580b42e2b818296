"""Clips that stand in a training and in an evaluation split, or in two data sets."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from configs.errors import DataError
from safe.data.manifests import Clip

_FILE_NAME = re.compile(r"Y([\w-]{11})|([\w-]{11})_[\d.]+")
_SAME_LENGTH = 0.01
"""Share of a split's clips that may have one length before that length says nothing."""


@dataclass(frozen=True)
class Known:
    """A clip with what is known of its sound."""

    clip: Clip
    """The clip."""
    sound: str | None = None
    """Hash of its sound; None when there is none, or when it is silent."""
    seconds: float | None = None
    """Its length in seconds."""


@dataclass(frozen=True)
class Shared:
    """A pair of clips in different splits that are the same recording or the same sound."""

    first: Clip
    """The clip in the first split."""
    second: Clip
    """The clip in the second split."""
    by: str
    """"id" (same recording), "audio" (same hash, under different ids) or "caption" (same words
    and length)."""


def shared_sounds(first: Sequence[Known], second: Sequence[Known]) -> list[Shared]:
    """Return the clips of `second` that are also in `first`, in the order of `second`.

    The recording decides, not the start time: two cuts of one video share their background. A
    caption and a length tell only where the length is rare: AudioCaps' clips are all 10 s long,
    and 409 of its 4,875 test captions are training captions word for word.
    """
    by_id: dict[str, Clip] = {}
    by_file: dict[str, Clip] = {}
    by_sound: dict[str, Clip] = {}
    by_caption: dict[tuple[str, int], Clip] = {}
    for one in first:
        by_id.setdefault(one.clip.origin, one.clip)
        by_file.setdefault(_youtube_id(one.clip.origin), one.clip)
        if one.sound is not None:
            by_sound.setdefault(one.sound, one.clip)
    for key, clip in _told_by_caption(first):
        by_caption.setdefault(key, clip)
    same_caption = {
        clip.id: by_caption[text, near]
        for (text, length), clip in _told_by_caption(second)
        for near in (length - 1, length, length + 1)
        if (text, near) in by_caption
    }
    result = []
    for two in second:
        clip, origin = two.clip, two.clip.origin
        # A file's name is held against whole ids only: dog_12 and dog_13 need not be one recording.
        twin = by_id.get(origin) or by_id.get(_youtube_id(origin)) or by_file.get(origin)
        if twin is not None:
            result.append(Shared(twin, clip, "id"))
        elif two.sound is not None and two.sound in by_sound:
            result.append(Shared(by_sound[two.sound], clip, "audio"))
        elif clip.id in same_caption:
            result.append(Shared(same_caption[clip.id], clip, "caption"))
    return result


def _youtube_id(name: str) -> str:
    """Return the id in a file's name (Y7fmOlUlwoNg, 7fmOlUlwoNg_20), any other name as it is."""
    found = _FILE_NAME.fullmatch(name)
    return (found[1] or found[2]) if found else name


def _told_by_caption(clips: Sequence[Known]) -> list[tuple[tuple[str, int], Clip]]:
    """Return (words, hundredths of a second) of the clips whose length few others have."""
    lengths = [None if one.seconds is None else round(one.seconds * 100) for one in clips]
    counts = Counter(lengths)
    most = max(1, int(_SAME_LENGTH * len(clips)))
    return [
        ((plain_words(text), length), one.clip)
        for one, length in zip(clips, lengths, strict=True)
        if length is not None and counts[length] <= most
        for text in one.clip.captions
    ]


def plain_words(caption: str) -> str:
    """Return a caption without case and punctuation."""
    return " ".join(re.findall(r"\w+", caption.casefold()))


def shared_clips(
    first: Iterable[Clip],
    second: Iterable[Clip],
    hashes: Mapping[tuple[str, str], str] | None = None,
) -> list[Shared]:
    """Return the clips of `second` that are also in `first`, by recording or by hash.

    `hashes` maps (split, clip id) to a hash of the audio; clips without one are compared by id.
    """
    known = hashes or {}
    one, other = (
        [Known(clip, known.get((clip.split, clip.id))) for clip in clips]
        for clips in (first, second)
    )
    return shared_sounds(one, other)


def assert_no_overlap(
    train: Iterable[Clip],
    evaluation: Iterable[Clip],
    hashes: Mapping[tuple[str, str], str] | None = None,
) -> None:
    """Raise DataError when an evaluation clip was also trained on (see `shared_clips`)."""
    shared = shared_clips(train, evaluation, hashes)
    if not shared:
        return
    pair = f"{shared[0].first.split!r} and {shared[0].second.split!r}"
    by_id = sum(one.by == "id" for one in shared)
    examples = ", ".join(
        one.second.id if one.by == "id" else f"{one.first.id} = {one.second.id}"
        for one in shared[:5]
    )
    more = ", ..." if len(shared) > 5 else ""
    raise DataError(
        f"{len(shared)} clips are in both {pair} ({by_id} by recording id, {len(shared) - by_id} "
        f"by identical audio): {examples}{more}; remove them from one of the two manifests "
        "(a score on clips that were trained on says nothing); "
        "`safe-train data check ROOT` lists them all"
    )
