"""The real captions, a Java check and tiny models, shared by the tests of the package."""

from __future__ import annotations

import csv
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from safe.evaluation.text import java_available

_SOURCE = Path(__file__).resolve().parents[1] / "models" / "conftest.py"
_spec = spec_from_file_location("tiny_backbones", _SOURCE)
assert _spec is not None and _spec.loader is not None
_tiny = sys.modules["tiny_backbones"] = module_from_spec(_spec)
_spec.loader.exec_module(_tiny)

make_backbone = _tiny.make_backbone
make_model = _tiny.make_model


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
