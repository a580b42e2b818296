"""The real captions and a Java check, shared by the tests of the evaluation package."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from safe.evaluation.text import java_available


@pytest.fixture(scope="session")
def audiocaps_test(shared: Path) -> dict[str, list[str]]:
    """AudioCaps test: 975 clips with 5 captions each."""
    clips: dict[str, list[str]] = {}
    with (shared / "data/audiocaps/test.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            clips.setdefault(f"{row['youtube_id']}_{row['start_time']}", []).append(row["caption"])
    return clips


@pytest.fixture(scope="session")
def java() -> None:
    """Skip what needs the PTB tokenizer or METEOR on a machine without Java."""
    if not java_available():
        pytest.skip(
            "needs Java for the PTB tokenizer and METEOR: `java -version` does not run here"
        )
