"""What every format reader gives, and what readers share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from configs.errors import DataError
from safe.data.manifests import Clip, Manifest

#: Names under which data sets call the three splits.
ALIASES = {
    "train": ("train", "training", "development"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "evaluation", "eval"),
}


@dataclass(frozen=True)
class Source:
    """A data set as it was found."""

    format: str
    """Name of the format that was taken."""
    root: Path
    """Its folder."""
    manifests: dict[str, Manifest]
    """By split: train, val, test, then others by name."""
    notes: tuple[str, ...] = ()
    """What a person should know about how it was read."""


@dataclass(frozen=True)
class Format:
    """One layout that can be read."""

    name: str
    """As it is called in messages."""
    looks: str
    """What a folder must hold, for the message when nothing fits."""
    claims: Callable[[Path], list[Path]]
    """Files of a folder that show this format; none: it is another one."""
    read: Callable[[Path, list[Path]], Source]
    """Reads a folder, given what was claimed; raises DataError for bad rows."""


def split_of(name: str) -> str | None:
    """Return train, val or test for one of their aliases, None for any other word."""
    word = name.strip().lower()
    return next((split for split, words in ALIASES.items() if word in words), None)


def in_order(manifests: dict[str, Manifest]) -> dict[str, Manifest]:
    """Return manifests with train, val and test first."""
    known = list(ALIASES)
    return dict(sorted(manifests.items(), key=lambda item: (_place(item[0], known), item[0])))


def _place(split: str, known: list[str]) -> int:
    return known.index(split) if split in known else len(known)


def merge(clips: Iterable[Clip], place: str) -> list[Clip]:
    """Join rows about the same audio file into one clip with all their captions.

    Raises DataError when two different files would have the same clip id.
    """
    found: dict[str, Clip] = {}
    captions: dict[str, list[str]] = {}
    for clip in clips:
        first = found.setdefault(clip.id, clip)
        if first is not clip and not _same_sound(first, clip):
            raise DataError(
                f"{place}: two different sounds ({first.path} and {clip.path}) have the clip id "
                f"{clip.id!r}; rename one of them"
            )
        captions.setdefault(clip.id, []).extend(clip.captions)
    return [replace(clip, captions=tuple(captions[name])) for name, clip in found.items()]


def _same_sound(one: Clip, other: Clip) -> bool:
    if one.embedded and other.embedded:  # their names say little: the folders are cut off
        return one.embedded.read() == other.embedded.read()
    return one.path == other.path
