"""What earns a grade: nothing that is not a finite number passes, and more is never worse."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.grade import AtLeast, Grade, Within, grade

FINITE = st.floats(-1e6, 1e6)
RANK = {Grade.FAIL: 0, Grade.PARTIAL: 1, Grade.PASS: 2}


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("condition", [AtLeast(-1e300), Within(-1e300, 1e300, slack=9)])
def test_what_is_no_finite_number_is_unknown(value: float | None, condition: AtLeast) -> None:
    assert grade(value, condition) is Grade.UNKNOWN


@given(FINITE, FINITE, FINITE, st.booleans())
def test_more_is_never_worse(a: float, b: float, limit: float, strict: bool) -> None:
    condition = AtLeast(limit, partial=limit - 5, strict=strict)
    low, high = sorted((a, b))
    assert RANK[grade(low, condition)] <= RANK[grade(high, condition)]


def test_success_table_of_the_plan() -> None:
    table = AtLeast(30.0, partial=25.0, strict=True)
    grades = [grade(v, table) for v in (24.999, 25.0, 30.0, 30.001)]
    assert grades == [Grade.FAIL, Grade.PARTIAL, Grade.PARTIAL, Grade.PASS]
    assert str(table) == "> 30 (partial from 25 on)"
    assert str(AtLeast(0.5, unit=" h")) == ">= 0.5 h"
    assert (
        str(Within(12, 18, slack=1.5, unit=" h")) == "12 to 18 h (partial within a factor of 1.5)"
    )


@given(st.floats(0.1, 10), st.floats(1, 5), st.floats(1, 3), st.floats(0.001, 1000))
def test_within_is_a_band_with_a_wider_one_around_it(
    low: float, ratio: float, slack: float, value: float
) -> None:
    high = low * ratio
    got = grade(value, Within(low, high, slack=slack))
    inside, near = low <= value <= high, low / slack <= value <= high * slack
    assert got is (Grade.PASS if inside else Grade.PARTIAL if near else Grade.FAIL)


def test_exactly_zero() -> None:
    assert grade(0.0, Within(0, 0)) is Grade.PASS and grade(1e-9, Within(0, 0)) is Grade.FAIL
    assert grade(0.0, AtLeast(0.0, strict=True)) is Grade.FAIL
