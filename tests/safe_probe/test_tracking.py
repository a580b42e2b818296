"""Probes of a tracked run are scalars in its tracker."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.overrides import dotted_fields
from probes.record import Record, RecordLog
from safe.training.launch import Launch
from safe.training.run import start
from safe_probe.watch import ProbeWatch, tag

pytestmark = pytest.mark.usefixtures("in_small_world")


def test_tags() -> None:
    assert tag(Record(3, "gates", "gate", 6, "effective", 0.3, "factor")) == (
        "gates/gate@6/effective"
    )
    assert tag(Record(3, "magnitude", "projector", None, "l2_median", 5, "L2/token")) == (
        "magnitude/projector/l2_median"
    )


def test_tensorboard_has_every_record(
    tiny_data: Path, make_tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra 'tracking'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_tiny_config(tiny_data, optim__max_steps=2)
    launch = Launch(
        console=Console(file=io.StringIO()), output=tmp_path, name="run", device="cpu",
        track="tensorboard",
    )  # fmt: skip
    start(config, dotted_fields(), launch, [ProbeWatch(1, ends=("magnitude", "gates"))])
    (file,) = (tmp_path / "safe-probe").glob("events.out.tfevents.*")
    events = EventAccumulator(str(file), {"scalars": 0}).Reload()
    series: dict[str, list[tuple[int, float]]] = {}
    for record in RecordLog.read(tmp_path / "run" / "probes.jsonl"):
        series.setdefault(tag(record), []).append((record.step, record.value))
    assert "gates/gate@2/effective" in series
    for name, points in series.items():
        kept = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in kept] == [step for step, _ in points]
        assert [v for _, v in kept] == pytest.approx([v for _, v in points], rel=1e-6, nan_ok=True)
    assert {"loss", "gate/2"} <= set(events.Tags()["scalars"])
