"""A number that is not finite never reaches a weight, and never passes a criterion."""

import math
from typing import Any

import pytest

from reports.criteria import CRITERIA
from reports.grade import Grade, grade


def test_every_site_of_a_step(trial: Any, tiny_run: Any, figure: Any) -> None:
    found = trial("numbers:sites", config=tiny_run.config.to_dict())
    figure(
        f"NaN and infinity at {found['cases']} places of a step: {found['skipped']} steps skipped, "
        f"{len(found['moved'])} updates that they reached"
    )
    assert found["moved"] == []
    assert found["cases"] == 18 and found["skipped"] >= 12


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_criterion_passes_by_it(value: float) -> None:
    for criterion in CRITERIA:
        assert grade(value, criterion.condition) is Grade.UNKNOWN, criterion.name
