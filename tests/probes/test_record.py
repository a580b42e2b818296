"""Records survive disk, NaN and a killed writer; the schema is pinned."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import RecordError
from probes.record import Record, RecordLog, Rows, append_records

RECORD = Record(3, "gates", "gate:a.b", 6, "raw", 0.25, "factor")
LINE = (
    '{"step": 3, "probe": "gates", "component": "gate:a.b", "layer": 6, "statistic": "raw", '
    '"value": 0.25, "unit": "factor"}\n'
)
HEADER = '{"schema": "safe-probe.records", "version": 1}\n'

records = st.builds(
    Record,
    st.integers(0, 2**40),
    st.text(),
    st.text(),
    st.none() | st.integers(0, 200),
    st.text(),
    st.floats(allow_subnormal=True),
    st.text(),
)


def test_schema_is_pinned(tmp_path: Path) -> None:
    RecordLog([RECORD]).write(tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == HEADER + LINE


@given(st.lists(records, max_size=5))
def test_round_trip_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, found: list[Record]
) -> None:
    path = tmp_path_factory.mktemp("log") / "r.jsonl"
    append_records(path, found[:2])
    append_records(path, found[2:])
    again = RecordLog.read(path)
    assert [repr(r) for r in again] == [repr(r) for r in found]


@pytest.mark.parametrize(
    ("value", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")]
)
def test_special_values_are_strict_json(value: float, text: str) -> None:
    row = Record(0, "p", "c", None, "s", value, "u")
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["value"] == text
    assert repr(Record.from_json(row.to_json()).value) == repr(value)


@pytest.mark.parametrize("cut", [1, 40, len(LINE) - 1, len(LINE) + 3, len(HEADER + LINE) - 2])
def test_torn_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    whole = HEADER + LINE + LINE
    path.write_text(whole[: len(whole) - cut])
    kept = max(0, whole[: len(whole) - cut].count("\n") - 1)
    append_records(path, [RECORD])
    assert RecordLog.read(path).records == [RECORD] * (kept + 1)


def test_reading_leaves_a_torn_line_out(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(HEADER + LINE + LINE[:30])
    assert len(RecordLog.read(path)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no header"),
        ("{}\n", r"line 1: not a file of records"),
        ('{"schema": "safe-probe.records", "version": 2}\n', "reads version 1"),
        (HEADER + "nonsense\n", "line 2"),
        (HEADER + "[1]\n", "line 2"),
        (HEADER + LINE.replace("0.25", '"many"'), "value must be a number"),
        (HEADER + LINE.replace("0.25", "true"), "value must be a number"),
        (HEADER + LINE.replace('"layer": 6', '"layer": 6.5'), "wrong type"),
        (HEADER + LINE.replace('"unit"', '"units"'), "has the fields"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        RecordLog.read(path)


@pytest.mark.parametrize("text", ["my notes\n", "my notes", "{}\n"])
def test_appending_to_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(RecordError, match="line 1"):
        append_records(path, [RECORD])
    assert path.read_text() == text


def test_selecting_and_table() -> None:
    rows = Rows("gates", 3)
    rows.add("gate", "raw", True, "factor", layer=6)
    rows.add("gate", "raw", math.nan, "factor")
    log = RecordLog(rows.records)
    assert log.value(layer=6) == 1.0
    assert isinstance(rows.records[0].value, float)
    assert log.value(layer=7) is None
    assert len(log.select(statistic="raw")) == 2
    frame = log.frame()
    assert " ".join(frame.columns) == "step probe component layer statistic value unit"
    assert str(frame["layer"].dtype) == "Int64"
    assert frame["layer"].isna().tolist() == [False, True]
    assert str(RecordLog().frame()["value"].dtype) == "float64"


def test_component_and_detail() -> None:
    assert (RECORD.part, RECORD.detail) == ("gate", "a.b")
    assert Record(0, "p", "text", None, "s", 0.0, "u").detail == ""
