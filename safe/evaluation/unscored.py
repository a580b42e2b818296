"""Captions that wait for their scores: a scorer that fails, or a kill, costs no caption."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from configs.errors import FileError
from configs.json_files import read_json
from configs.schema import EvalConfig
from safe.data.splits import Split
from safe.models.digest import file_digest
from safe.training.durable import write_atomically

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Unscored:
    """A file of captions, named after everything that they depend on.

    Captions of another adapter, of other clips or decoded otherwise have another name.
    """

    folders: tuple[Path, ...]
    """Where to look; the first is where to write."""
    name: str
    """Of the file in each of them."""

    @classmethod
    def of(
        cls, folders: Sequence[Path], adapter: Path, split: Split, config: EvalConfig, seed: int
    ) -> "Unscored":
        """The file for one evaluation.

        Args:
            folders: where results lie; the first is where to write.
            adapter: folder of the trained weights.
            split: the clips.
            config: how captions are decoded.
            seed: of the shuffled-audio pairing.
        """
        decoding = asdict(config) | {"split": split.name, "clips": split.clip_ids, "seed": seed}
        made_of = hashlib.sha256(json.dumps(decoding, default=str).encode())
        made_of.update(file_digest(adapter.glob("*.safetensors")).encode())
        for start in range(0, len(split), _ROWS_AT_ONCE):
            rows = split.embeddings[start : start + _ROWS_AT_ONCE]
            made_of.update(np.array(rows, dtype=np.float32).tobytes())
        name = f"unscored-{split.name}-{made_of.hexdigest()[:16]}.json"
        return cls(tuple(folders), name)

    @property
    def path(self) -> Path:
        """Where the captions are kept."""
        return self.folders[0] / "captions" / self.name

    def load(self) -> dict[str, dict[str, str]] | None:
        """Captions by condition and clip id; None when none are waiting."""
        for folder in self.folders:
            try:
                found: dict[str, dict[str, str]] = read_json(folder / "captions" / self.name)
            except (FileNotFoundError, FileError):
                continue
            return found
        return None

    def keep(self, captions: dict[str, dict[str, str]]) -> None:
        """Write them down before they are scored.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(captions, ensure_ascii=False) + "\n")

    def done(self) -> None:
        """They are scored, and stand in the results."""
        for folder in self.folders:
            (folder / "captions" / self.name).unlink(missing_ok=True)
