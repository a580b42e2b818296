"""What `data prepare` found and made, as plain values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from configs.checks import MAX_UNUSABLE
from safe.data.overlap import Shared
from safe.data.problems import Problem, too_many_unusable


@dataclass(frozen=True)
class Count:
    """The counts of one split."""

    rows: int
    """Rows that the source lists."""
    clips: int
    """Clips, missing ones included."""
    captions: int
    """Captions of all clips together."""
    present: int
    """Clips with an audio file, usable or not."""
    usable: int
    """Clips that can be trained on or scored: the N of a score."""
    reasons: Mapping[str, int]
    """Number of clips per reason why they cannot be used."""


@dataclass(frozen=True)
class Twin:
    """A clip that is somewhere else, too."""

    by: str
    """"id" (same recording), "audio" (same samples) or "caption" (same words, same rare length)."""
    split: str
    """Split of the prepared clip."""
    clip: str
    """Its id."""
    folder: str
    """The other data set, "" for another split of the same."""
    other_split: str
    """Split of the other clip."""
    other: str
    """Its id."""

    @classmethod
    def of(cls, pair: Shared, folder: str = "") -> "Twin":
        """Return a pair whose second clip is the prepared one."""
        first, second = pair.first, pair.second
        return cls(pair.by, second.split, second.id, folder, first.split, first.id)

    @property
    def leaks(self) -> bool:
        """Whether a score is spoilt by it: one of the two is trained on, the other scored.

        Between two data sets, training clips may be in common, and scored ones too.
        """
        return not self.folder or (self.split == "train") != (self.other_split == "train")


@dataclass(frozen=True)
class Prepared:
    """Everything that a preparation has to say."""

    source: str
    """The folder that was read."""
    output: str
    """The folder that was made."""
    format: str
    """The format that was recognised."""
    splits: Mapping[str, Count]
    """Counts per split."""
    audiocaps_test: int
    """How many usable clips of the test split are from AudioCaps' test split."""
    problems: Sequence[Problem]
    """A row for every clip that cannot be used."""
    twins: Sequence[Twin]
    """Clips that are also in another split or in another data set."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each manifest and of hashes.jsonl by name."""
    notes: Sequence[str] = ()
    """What a person should know about how it was read."""
    reused: int = 0
    """Clips that an earlier call had placed; not part of the JSON, which says what there is."""
    max_unusable: float = MAX_UNUSABLE
    """Share of a split's clips that may be unusable."""

    @property
    def leakage(self) -> list[Twin]:
        """The twins that spoil a score."""
        return [twin for twin in self.twins if twin.leaks]

    @property
    def obstacles(self) -> tuple[str, ...]:
        """What keeps the folder from being used for a training run with an honest score."""
        found = (
            too_many_unusable(name, count.clips, count.usable, self.max_unusable)
            for name, count in self.splits.items()
        )
        lines = [line for line in found if line]
        pairs: dict[str, Counter[str]] = {}
        for twin in self.leakage:
            where = f"{twin.other_split} of {twin.folder}" if twin.folder else twin.other_split
            pairs.setdefault(f"{twin.split} is also in {where}", Counter())[twin.by] += 1
        for pair, by in pairs.items():
            ways = ", ".join(f"{by[way]:,} by {word}" for way, word in _WAYS.items() if by[way])
            lines.append(f"leakage: {by.total():,} of {pair} ({ways})")
        return tuple(lines)

    @property
    def exit_code(self) -> int:
        """0 when the folder can be trained on and scored, 1 when something is in the way."""
        return 1 if self.obstacles else 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the same for the same source and output, always."""
        return {
            "source": self.source,
            "output": self.output,
            "format": self.format,
            "notes": list(self.notes),
            "max_unusable": self.max_unusable,
            "exit_code": self.exit_code,
            "obstacles": list(self.obstacles),
            "splits": {name: asdict(count) for name, count in self.splits.items()},
            "audiocaps_test": self.audiocaps_test,
            # those without a file are in hashes.jsonl, often thousands of them
            "problems": [row.to_dict() for row in self.problems if row.reason != "missing"],
            "leakage": [asdict(twin) for twin in self.leakage],
            "in_common": [asdict(twin) for twin in self.twins if not twin.leaks],
            "files": dict(self.files),
        }


_WAYS = {"id": "recording", "audio": "identical audio", "caption": "caption and length"}
