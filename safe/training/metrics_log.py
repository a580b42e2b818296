"""metrics.jsonl: one JSON object per line, cut back on resume to what the checkpoint has seen."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from configs.json_files import parse_json
from safe.training.durable import write_atomically

_NONFINITE = "nonfinite"


class MetricsLog:
    """Appends rows to a file, each written at once, so that a killed run loses none.

    JSON has no NaN or infinity: such a value becomes null, and the row's "nonfinite" object says
    what it was, by its key, such as {"step": 7, "loss": null, "nonfinite": {"loss": "nan"}}.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; it needs an integer "step".

        Raises:
            CheckpointError: no integer step, or a value that JSON cannot hold.
            OSError: the disk failed.
        """
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise CheckpointError(f"a metrics row needs an integer 'step', got {step!r}")
        if _NONFINITE in row:
            raise CheckpointError(f"the metrics key {_NONFINITE!r} is reserved; rename it")
        nonfinite: dict[str, str] = {}
        clean = {str(key): _clean(value, str(key), nonfinite) for key, value in row.items()}
        if nonfinite:
            clean[_NONFINITE] = nonfinite
        self._write(json.dumps(clean, allow_nan=False).encode() + b"\n")

    def sync(self) -> None:
        """Ask the disk to keep all rows; call it before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def truncate(self, step: int) -> int:
        """Keep only the rows up to `step`, byte for byte, and return how many were dropped.

        A last line that a kill or a full disk cut short is dropped as well.

        Raises:
            CheckpointError: a complete line is not a row of metrics; the file is unchanged.
            OSError: the disk failed; the file is unchanged.
        """
        with self.path.open("rb") as file:
            lines = file.readlines()
        kept = [
            line
            for number, line in enumerate(lines, start=1)
            if line.endswith(b"\n") and self._step(line, number) <= step
        ]
        if len(kept) < len(lines):
            write_atomically(self.path, b"".join(kept))
            self._file.close()
            self._file = self.path.open("ab", buffering=0)
        return len(lines) - len(kept)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        """Write a whole line or nothing, so that a full disk leaves no half row in the middle."""
        before = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise

    def _step(self, line: bytes, number: int) -> int:
        try:
            return int(parse_json(line)["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self.path}: line {number} is not a row of metrics "
                f"({line[:40]!r}); repair or delete that line, then resume"
            ) from error


def _clean(value: Any, key: str, nonfinite: dict[str, str]) -> Any:
    """Return `value` as JSON; numbers of NumPy and torch become Python's."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        nonfinite[key] = str(float(value))
        return None
    if isinstance(value, dict):
        return {str(name): _clean(item, f"{key}.{name}", nonfinite) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, f"{key}.{index}", nonfinite) for index, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _clean(value.item(), key, nonfinite)
    raise CheckpointError(
        f"the metric {key!r} is a {type(value).__name__}; use numbers, text, "
        "true/false, None, lists and dicts"
    )
