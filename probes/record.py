"""Records: one measured number with its place, in memory, on disk and as a table.

On disk a file of records is JSON lines: a header ``{"schema": "safe-probe.records", "version": 1}``
and one object per record. JSON has no NaN or infinity, so these are the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"``; they come back as floats.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, TextIO

from configs.csv_cells import plain_cell
from configs.json_files import parse_json, whole_lines
from probes.errors import RecordError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "safe-probe.records"
SCHEMA_VERSION = 1
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class Record:
    """One number and where it was measured."""

    step: int
    """Optimizer steps done when it was measured; 0 before training."""
    probe: str
    """Name of the probe."""
    component: str
    """Part of the signal path, optionally with a detail: ``projector``, ``fusion:head3``."""
    layer: int | None
    """Decoder layer counted from 0; None outside the layers (for hidden states: at the input)."""
    statistic: str
    """Which number, e.g. ``l2_median``."""
    value: float
    """The number itself; NaN and infinities are kept."""
    unit: str
    """Its unit, e.g. ``L2/token``, ``ratio``, ``share``, ``nats/token``, ``parameters``."""

    @property
    def part(self) -> str:
        """The component without its detail."""
        return self.component.partition(":")[0]

    @property
    def detail(self) -> str:
        """What follows the colon in the component, e.g. a parameter's name; often empty."""
        return self.component.partition(":")[2]

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON-safe dictionary."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "value": json_number(self.value)
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Record":
        """The record that :meth:`to_json` wrote.

        Raises:
            RecordError: a field is missing, unknown or of the wrong type.
        """
        names = [f.name for f in fields(cls)]
        if sorted(data) != sorted(names):
            raise RecordError(f"a record has the fields {', '.join(names)}, not {sorted(data)}")
        texts = all(isinstance(data[k], str) for k in ("probe", "component", "statistic", "unit"))
        numbers = type(data["step"]) is int and type(data["layer"]) in (int, type(None))
        if not (texts and numbers):
            raise RecordError(f"a field of this record has the wrong type: {data}")
        return cls(**{**data, "value": _decode(data["value"])})


class Rows:
    """Collects the records of one probe at one step.

    Args:
        probe: name of the probe.
        step: optimizer steps done.
    """

    def __init__(self, probe: str, step: int) -> None:
        self.probe, self.step = probe, step
        self.records: list[Record] = []

    def add(
        self,
        component: str,
        statistic: str,
        value: SupportsFloat,
        unit: str,
        layer: int | None = None,
    ) -> None:
        """Add one number; a flag becomes 0 or 1."""
        row = Record(self.step, self.probe, component, layer, statistic, float(value), unit)
        self.records.append(row)


class RecordLog:
    """Records in the order in which they were measured.

    Args:
        records: what to start with.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records = list(records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def extend(self, records: Iterable[Record]) -> None:
        """Add records at the end."""
        self.records.extend(records)

    def select(self, **where: Any) -> "RecordLog":
        """The records whose fields equal ``where``, e.g. ``select(probe="gates", layer=6)``."""
        return RecordLog(
            r for r in self.records if all(getattr(r, k) == v for k, v in where.items())
        )

    def value(self, **where: Any) -> float | None:
        """The newest value among :meth:`select`, or None when nothing was measured."""
        found = self.select(**where).records
        return found[-1].value if found else None

    def frame(self) -> "pd.DataFrame":
        """A tidy pandas table, one row per record; ``layer`` is a nullable integer."""
        import pandas as pd

        columns = [f.name for f in fields(Record)]
        rows = [[getattr(r, name) for name in columns] for r in self.records]
        types = {"step": "int64", "layer": "Int64", "value": "float64"}
        return pd.DataFrame(rows, columns=columns).astype(types)

    def to_csv(self, target: "Path | TextIO") -> None:
        """Write the table as CSV, with an apostrophe in front of names that look like formulas."""
        from pandas.api.types import is_numeric_dtype

        frame = self.frame()
        for name in frame.columns:
            if not is_numeric_dtype(frame[name]):
                frame[name] = frame[name].map(plain_cell)
        frame.to_csv(target, index=False)

    def write(self, path: Path) -> None:
        """Write all records to ``path``, replacing it."""
        path.write_text("".join(_lines([_HEADER, *map(Record.to_json, self)])), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "RecordLog":
        """Read a file of records; a last line that was cut off while being written is left out.

        Raises:
            FileNotFoundError: there is none.
            FileError: it cannot be read.
            RecordError: not a file of records, another version, or a damaged line (it is named).
        """
        log, number = cls(), 0
        for number, line in enumerate(whole_lines(path), 1):
            try:
                data = parse_json(line)
                if number == 1:
                    _check_header(data)
                else:
                    log.records.append(Record.from_json(data))
            except (ValueError, TypeError) as error:
                raise RecordError(f"{path}, line {number}: {error}") from None
        if not number:
            raise RecordError(f"{path}: not a file of records, it has no header line")
        return log


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append to a file of records, which is created with its header when absent.

    A last line that was cut off (the process was killed while writing) is dropped first.

    Raises:
        RecordError: the file is something else, or has another schema version.
    """
    lines = _lines(map(Record.to_json, records))
    with path.open("a+b") as file:
        file.seek(0)
        header, own_header = file.readline(), _lines([_HEADER])[0]
        if own_header.encode()[:-1].startswith(header):  # new, or killed while writing the header
            file.truncate(0)
            lines.insert(0, own_header)
        else:
            try:
                _check_header(parse_json(header))
            except ValueError as error:
                raise RecordError(f"{path}, line 1: {error}") from None
            _drop_torn_line(file)
        file.write("".join(lines).encode())


def _drop_torn_line(file: Any) -> None:
    end = file.seek(0, 2)
    file.seek(max(0, end - 65536))
    tail = file.read()
    file.truncate(end - (len(tail) - tail.rfind(b"\n") - 1))


_HEADER = {"schema": SCHEMA, "version": SCHEMA_VERSION}


def _lines(objects: Iterable[dict[str, Any]]) -> list[str]:
    return [json.dumps(x, allow_nan=False, ensure_ascii=False) + "\n" for x in objects]


def _check_header(data: Any) -> None:
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise RecordError(f"not a file of records, which starts with {json.dumps(_HEADER)}")
    if data.get("version") != SCHEMA_VERSION:
        raise RecordError(
            f"records of schema version {data.get('version')}; "
            f"this safe-probe reads version {SCHEMA_VERSION}"
        )


def json_number(value: float) -> float | str:
    """``value`` as JSON can hold it: NaN and infinities as strings."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _decode(value: Any) -> float:
    if isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    if type(value) not in (int, float):
        raise RecordError(f"value must be a number or one of {', '.join(_SPECIAL)}: {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise RecordError("value is a whole number too large for a float") from None
