"""A score's place among published ones: only for AudioCaps' test clips, and only in its sizes."""

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from configs.claims import BEST, CONSTANT, HUMAN, PUBLIC_SCALE, TRAINING_FREE
from safe.evaluation.metrics import score
from safe.evaluation.public_scale import _neighbours, place
from safe.summary import print_evaluation

Captions = Mapping[str, list[str]]


def first(captions: Captions, count: int) -> dict[str, list[str]]:
    return dict(list(captions.items())[:count])


@pytest.mark.parametrize(
    ("cider", "above", "below", "words"),
    [
        (3.0, None, "a constant caption", "below a constant caption (15.6)"),
        (CONSTANT, None, "training-free", "below training-free (28.1), as a constant caption"),
        (40.0, "training-free", "the 2019 baseline", "above training-free (28.1), below the 2019"),
        (71.0, "the 2019 baseline", "the best", "as a frozen LLM with CLAP (70.4-72.1)"),
        (80.0, "a frozen LLM with CLAP", "the best", "above a frozen LLM with CLAP (70.4-72.1)"),
        (95.0, "people", None, "above people (90.8)"),
    ],
)
def test_all_975_clips_are_placed(
    cider: float, above: str | None, below: str | None, words: str, audiocaps_test: Captions
) -> None:
    placement = place(cider, audiocaps_test)
    assert placement.comparable and (placement.clips, placement.audiocaps_clips) == (975, 975)
    assert (placement.above, placement.below) == (above, below)
    assert words in placement.reason
    assert placement.reason.startswith("AudioCaps test, 975 clips (the whole test split, as most")


def test_957_clips_are_a_published_size_too(audiocaps_test: Captions) -> None:
    placement = place(80.3, first(audiocaps_test, 957))
    assert placement.comparable and "957 clips (as EnCLAP and DRCap score it)" in placement.reason


@pytest.mark.parametrize("count", [2, 893, 956, 974])
def test_another_number_of_test_clips_is_not_comparable(
    count: int, audiocaps_test: Captions
) -> None:
    placement = place(60.0, first(audiocaps_test, count))
    assert not placement.comparable and placement.above is placement.below is None
    assert placement.audiocaps_clips == count
    assert placement.reason == (
        f"{count} of AudioCaps' 975 test clips; published scores are over 975 or 957: not "
        "comparable to the public scale"
    )


def test_other_clips_have_no_place_even_in_a_published_number(audiocaps_test: Captions) -> None:
    other = {f"clip-{number:04d}": ["text"] * 5 for number in range(975)}
    placement = place(60.0, other)
    assert not placement.comparable
    assert placement.reason == "not AudioCaps' test split: the public scale does not apply"
    mixed = first(audiocaps_test, 900) | dict(list(other.items())[:75])
    assert place(60.0, mixed).reason == (
        "only 900 of 975 clips are of AudioCaps' test split: the public scale does not apply"
    )


def test_fewer_references_are_not_comparable(audiocaps_test: Captions) -> None:
    fewer = {clip: captions[:1] for clip, captions in audiocaps_test.items()}
    placement = place(60.0, fewer)
    assert not placement.comparable and "not every clip has 5 references" in placement.reason


@given(st.floats(0, 1000))
def test_neighbours_bracket_the_score(cider: float) -> None:
    above, below = _neighbours(cider)
    assert above is None or above.high < cider
    assert below is None or below.low > cider
    skipped = [p for p in PUBLIC_SCALE if p not in (above, below) and p.low <= cider <= p.high]
    assert len(skipped) <= 1


def test_the_scale_is_in_order() -> None:
    ends = [end for point in PUBLIC_SCALE for end in (point.low, point.high)]
    assert ends == sorted(ends)
    assert (CONSTANT, TRAINING_FREE, BEST, HUMAN) == (15.6, 28.1, 84.1, 90.8)


def test_the_scale_agrees_with_what_can_be_measured_here(audiocaps_test: Captions) -> None:
    """People against each other, and the best constant caption, by our own scorer."""
    last = {clip: captions[-1] for clip, captions in audiocaps_test.items()}
    rest = {clip: captions[:-1] for clip, captions in audiocaps_test.items()}
    people = score(last, rest, tokenizer="simple", metrics=("cider",)).cider
    assert people == pytest.approx(HUMAN, rel=0.1)


def test_every_evaluation_says_it(tiny_run: Any) -> None:
    console = Console(file=io.StringIO(), width=120)
    print_evaluation(tiny_run.evaluation, console)
    assert isinstance(console.file, io.StringIO)
    said = "not AudioCaps' test split: the public scale does not apply"
    assert f"public scale: {said}" in console.file.getvalue()
    saved = json.loads((tiny_run.folder / "evaluation.json").read_text())["public_scale"]
    assert saved == {
        "comparable": False, "clips": 5, "audiocaps_clips": 0, "above": None, "below": None,
        "reason": said,
    }  # fmt: skip
