"""A run's evaluation.json as records, so that scores are judged like measurements."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from probes.record import Record, Rows

_CONTROLS = {
    "shuffled": ("controls", "another clip's audio"),
    "silence": ("controls", "silence"),
    "gate_off": ("controls", "gate 0"),
    "commonest_caption": ("floors", "commonest caption"),
    "nearest_neighbour": ("floors", "nearest neighbour"),
}


def score_records(evaluation: Mapping[str, Any], step: int = 0) -> list[Record]:
    """The records of probe ``scores``, component ``score``; what is not there gives no row.

    CIDEr x 100: ``cider`` with its interval ``cider_low``, ``cider_high``, ``shuffled``,
    ``silence``, ``gate_off``, ``commonest_caption``, ``nearest_neighbour``; ``versus_shuffled``
    (paired difference) with ``_low`` and ``_high``; ``clips``; shares ``distinct`` and
    ``commonest_share`` of the captions.

    Args:
        evaluation: what ``safe-train`` writes as evaluation.json.
        step: optimizer steps done.
    """
    rows = Rows("scores", step)

    def add(statistic: str, value: Any, unit: str = "CIDEr x 100") -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(OverflowError):  # a whole number too large for a float
                rows.add("score", statistic, value, unit)

    scores = _within(evaluation, "scores")
    add("cider", scores.get("cider"))
    interval = scores.get("cider_interval")
    if isinstance(interval, list | tuple) and len(interval) == 2:
        for name, value in zip(("low", "high"), interval, strict=True):
            add(f"cider_{name}", value)
    add("clips", scores.get("n_clips"), "clips")
    for name, (section, key) in _CONTROLS.items():
        add(name, _within(_within(evaluation, section), key).get("cider"))
    difference = _within(evaluation, "versus_shuffled")
    for suffix, key in (("", "mean"), ("_low", "low"), ("_high", "high")):
        add(f"versus_shuffled{suffix}", difference.get(key))
    for name in ("distinct", "commonest_share"):
        add(name, _within(evaluation, "diversity").get(name), "share")
    return rows.records


def _within(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The section ``key``; empty when it is missing or something else."""
    found = mapping.get(key)
    return found if isinstance(found, Mapping) else {}
