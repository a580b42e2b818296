"""Clips that stand in a training and in an evaluation split."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from configs.errors import DataError
from safe.data.manifests import Clip


@dataclass(frozen=True)
class Shared:
    """A pair of clips in different splits that are the same recording or the same sound."""

    first: Clip
    """The clip in the first split."""
    second: Clip
    """The clip in the second split."""
    by: str
    """"id" (same youtube_id) or "audio" (same hash, under different ids)."""


def shared_clips(
    first: Iterable[Clip],
    second: Iterable[Clip],
    hashes: Mapping[tuple[str, str], str] | None = None,
) -> list[Shared]:
    """Return the clips of `second` that are also in `first`, in the order of `second`.

    The recording decides, not the start time: two cuts of one video share their background.
    `hashes` maps (split, clip id) to a hash of the audio; clips without one are compared by id.
    """
    hashes = hashes or {}
    by_id: dict[str, Clip] = {}
    by_hash: dict[str, Clip] = {}
    for clip in first:
        by_id.setdefault(clip.youtube_id, clip)
        audio = hashes.get((clip.split, clip.id))
        if audio is not None:
            by_hash.setdefault(audio, clip)
    result = []
    for clip in second:
        audio = hashes.get((clip.split, clip.id))
        if clip.youtube_id in by_id:
            result.append(Shared(by_id[clip.youtube_id], clip, "id"))
        elif audio is not None and audio in by_hash:
            result.append(Shared(by_hash[audio], clip, "audio"))
    return result


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
