"""Reading hashes.jsonl, which `data prepare` leaves beside the manifests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import DataError
from safe.data.tables import jsonl_values

FILE = "hashes.jsonl"


def prepared_rows(root: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return the row of each clip by (split, clip id); none when the folder was not prepared.

    Raises DataError for a line that `data prepare` does not write.
    """
    path = root / FILE
    if not path.is_file():
        return {}
    return {_key(row, place): row for row, place in jsonl_values(path)}


def prepared_sounds(root: Path) -> dict[tuple[str, str], str]:
    """Return the hash of each clip's samples; those without sound, or silent, are left out."""
    return {key: row["sound"] for key, row in prepared_rows(root).items() if row.get("sound")}


def _key(row: Any, place: str) -> tuple[str, str]:
    try:
        return str(row["split"]), str(row["clip"])
    except (TypeError, KeyError):
        raise DataError(f"{place}: is not what `data prepare` writes; prepare it again") from None
