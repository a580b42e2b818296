"""What can be wrong with a clip: the reasons, an error that carries one, a row that lists it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from configs.errors import DataError
from safe.data.manifests import Clip

#: Reasons that make a clip unusable, with what they mean.
UNUSABLE = {
    "missing": "no audio file was found for the clip",
    "outside": "a link leads from the audio file's path out of the data folder: copy the file in",
    "unreadable": "the file cannot be opened or is not audio",
    "crashed": "the decoder crashed on the file",
    "over_limits": "decoding the file takes more time or memory than is allowed",
    "truncated": "the file is cut short or damaged: fewer samples decode than it declares",
    "empty": "the file holds no samples",
    "too_short": "the clip is shorter than the least length that is allowed",
    "too_long": "the file declares more than two hours of sound",
    "silent": "the samples vary by less than -80 dBFS",
    "nonfinite": "the samples hold NaN or infinity",
    "nonfinite_embedding": "the audio encoder returned NaN or infinity",
}

#: Reasons that leave a clip usable but that a person should know about.
REMARKS = {
    "wrong_rate": "the sample rate is not the expected one (the clip will be resampled)",
    "clipped": "more than 0.1% of the samples are at full scale",
    "duplicate_audio": "another clip of the same split has exactly the same samples",
    "duplicate_id": "the recording is also in this split with another start time",
    "duplicate_caption": "the same caption is given twice for the clip",
    "changed": "the samples are not those that `data prepare` wrote down in hashes.jsonl",
    "shared_id": "the recording is also in another split",
    "shared_audio": "a clip of another split has exactly the same samples",
    "shared_caption": "a clip of another split has the same caption and the same, rare length",
}


def too_many_unusable(split: str, clips: int, usable: int, allowed: float) -> str | None:
    """Return in words that a split has lost all its clips, or more than `allowed` of them."""
    if not usable:
        return f"{split}: none of its {clips:,} clips can be used"
    if clips - usable > allowed * clips:
        return (
            f"{split}: {clips - usable:,} of its {clips:,} clips cannot be used, more than "
            f"{allowed:.0%} (--max-unusable)"
        )
    return None


class AudioProblem(DataError):
    """One audio file cannot be used.

    `reason` is a key of UNUSABLE, `detail` says what was found.
    """

    def __init__(self, path: Path | str, reason: str, detail: str = "") -> None:
        assert reason in UNUSABLE, reason
        self.path = str(path)
        self.reason = reason
        self.detail = detail or UNUSABLE[reason]
        super().__init__(f"{self.path}: {reason}: {self.detail}")

    @classmethod
    def without_file(cls, clip: Clip) -> Self:
        """Return the problem of a clip whose `path` is None."""
        return cls(clip.id, "outside" if clip.outside else "missing")


@dataclass(frozen=True)
class Problem:
    """One row of a list of problems."""

    split: str
    """Name of the split the clip belongs to."""
    clip: str
    """Id of the clip."""
    file: str
    """Audio file, or "" when there is none."""
    reason: str
    """A key of UNUSABLE or REMARKS."""
    detail: str
    """What was found, in words."""

    @classmethod
    def of(cls, clip: Clip, reason: str, detail: str) -> Self:
        """Return the row for one clip."""
        return cls(clip.split, clip.id, str(clip.path or ""), reason, detail)

    @property
    def unusable(self) -> bool:
        """Whether training and evaluation must leave the clip out."""
        return self.reason in UNUSABLE

    def to_dict(self) -> dict[str, str | bool]:
        """Return the row as plain values for JSON."""
        return {**asdict(self), "unusable": self.unusable}
