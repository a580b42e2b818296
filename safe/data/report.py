"""What a check of a data folder found, as plain values."""

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any

from configs.checks import MAX_UNUSABLE
from safe.data.problems import Problem, too_many_unusable

AUDIOCAPS_LAYOUT = "AudioCaps layout"
"""The format that training reads; of any other `safe-train data prepare` makes it."""


@dataclass(frozen=True)
class SplitReport:
    """The counts of one split."""

    manifest: str
    """File name of the manifest."""
    rows: int
    """Rows of the manifest."""
    clips: int
    """Clips after grouping rows with the same youtube_id and start_time."""
    captions: int
    """Reference captions of all clips together."""
    present: int
    """Clips with an audio file, usable or not."""
    usable: int
    """Clips that training and evaluation can use."""
    reasons: dict[str, int]
    """Number of problem rows per reason, without what is shared between splits."""
    rates: dict[int, int]
    """Number of readable files per sample rate in Hz."""
    channels: dict[int, int]
    """Number of readable files per number of channels."""
    seconds: tuple[float, ...]
    """Lengths of the readable files in seconds, sorted."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; lengths as least, median, greatest and total."""
        return {
            "manifest": self.manifest,
            "rows": self.rows,
            "clips": self.clips,
            "captions": self.captions,
            "present": self.present,
            "usable": self.usable,
            "reasons": self.reasons,
            "sample_rates": {str(rate): count for rate, count in self.rates.items()},
            "channels": {str(number): count for number, count in self.channels.items()},
            "seconds": _summary(self.seconds),
        }


def _summary(lengths: tuple[float, ...]) -> dict[str, float] | None:
    if not lengths:
        return None
    return {
        "min": lengths[0],
        "median": median(lengths),
        "max": lengths[-1],
        "total": sum(lengths),
    }


@dataclass(frozen=True)
class DataReport:
    """Everything a check found."""

    root: str
    """The folder that was checked."""
    splits: dict[str, SplitReport]
    """Counts per split."""
    problems: tuple[Problem, ...]
    """One row per clip and reason: the unusable, the remarks, then what splits share."""
    format: str = AUDIOCAPS_LAYOUT
    """Name of the format that the folder is in."""
    notes: tuple[str, ...] = ()
    """What a person should know about how it was read."""
    max_unusable: float = MAX_UNUSABLE
    """Share of a split's clips that may be unusable."""
    lacking: tuple[str, ...] = ()
    """Splits that a training reads and the folder, in AudioCaps layout, does not have."""

    @property
    def shared(self) -> dict[str, int]:
        """Number of clips that an earlier split also has: by id, audio alone, caption alone."""
        count = Counter(row.reason for row in self.problems)
        return {by: count[f"shared_{by}"] for by in ("id", "audio", "caption")}

    @property
    def obstacles(self) -> tuple[str, ...]:
        """What keeps the folder from being used for a training run with an honest score."""
        found = (
            too_many_unusable(name, split.clips, split.usable, self.max_unusable)
            for name, split in self.splits.items()
        )
        lines = [line for line in found if line]
        if self.lacking:
            lines.append(
                f"no {' and no '.join(self.lacking)}: a training reads train, val and test; take "
                "what is missing from another prepared data set (docs/data.md, Leakage)"
            )
        if any(self.shared.values()):
            ids, audio, caption = self.shared.values()
            line = f"splits share {ids} clips by recording id and {audio} by identical audio"
            lines.append(f"{line}, {caption} by caption and length" if caption else line)
        return tuple(lines)

    @property
    def exit_code(self) -> int:
        """0 when the folder can be trained on and scored, 1 when something is in the way."""
        return 1 if self.obstacles else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {
            "root": self.root,
            "format": self.format,
            "notes": list(self.notes),
            "max_unusable": self.max_unusable,
            "exit_code": self.exit_code,
            "obstacles": list(self.obstacles),
            "splits": {name: split.to_dict() for name, split in self.splits.items()},
            "shared": self.shared,
            "problems": [row.to_dict() for row in self.problems],
        }
