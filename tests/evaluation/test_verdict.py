"""The seed's table, whole: every score and every difference has one verdict."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from configs.errors import MetricError
from safe.evaluation.bootstrap import Difference
from safe.evaluation.verdict import decide

CLEAR = Difference(mean=20.0, low=12.0, high=28.0)


@pytest.mark.parametrize(
    ("cider", "outcome"),
    [(math.nextafter(30.0, 31.0), "VERIFIED"), (30.0, "PARTIAL"), (25.0, "PARTIAL"),
     (math.nextafter(25.0, 0.0), "BLOCKED"), (0.0, "BLOCKED"), (900.0, "VERIFIED")],
)  # fmt: skip
def test_edges_of_the_table(cider: float, outcome: str) -> None:
    assert decide(cider, CLEAR).outcome == outcome


@given(cider=st.floats(), low=st.floats(), mean=st.floats(), high=st.floats())
@example(cider=math.nan, low=1.0, mean=2.0, high=3.0)
@example(cider=1000.0, low=math.nan, mean=math.nan, high=math.nan)
@example(cider=30.0, low=5e-324, mean=1.0, high=2.0)
def test_exactly_one_verdict_and_nan_never_passes(
    cider: float, low: float, mean: float, high: float
) -> None:
    difference = Difference(mean=mean, low=low, high=high)
    if not math.isfinite(cider):
        with pytest.raises(MetricError, match="no verdict from CIDEr .*must be a finite number"):
            decide(cider, difference)
        return
    verdict = decide(cider, difference)
    from_the_sound = low > 0  # False for NaN
    wanted = "VERIFIED" if cider > 30 else "PARTIAL" if cider >= 25 else "BLOCKED"
    assert verdict.outcome == (wanted if from_the_sound else "BLOCKED")
    assert ("the score does not come from the sound" in verdict.reason) == (not from_the_sound)
    assert f"CIDEr {cider:.1f}" in verdict.reason and verdict.next_step


@pytest.mark.parametrize(
    ("cider", "difference", "reason", "next_step"),
    [
        (48.2, CLEAR, "CIDEr 48.2 is above 30 and +20.0 against another clip's audio "
         "[95% +12.0, +28.0]: connectivity verified", "Phase 2"),
        (27.0, CLEAR, "CIDEr 27.0 is between 25 and 30; +20.0", "partial success"),
        (18.0, CLEAR, "CIDEr 18.0 is below 25; +20.0 against another clip's audio "
         "[95% +12.0, +28.0]: still blocked", "roll back (safe-train rollback RUN)"),
        (180.0, Difference(mean=0.1, low=-3.0, high=3.2), "CIDEr 180.0, but +0.1 against another "
         "clip's audio [95% -3.0, +3.2]: the score does not come from the sound", "broken link"),
    ],
)  # fmt: skip
def test_words(cider: float, difference: Any, reason: str, next_step: str) -> None:
    verdict = decide(cider, difference)
    assert verdict.reason.startswith(reason) and next_step in verdict.next_step
