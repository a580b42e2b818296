"""report.json: its JSON Schema, which comes with the package, and values that JSON can hold."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from probes.record import json_number


def report_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of what :meth:`reports.report.Report.to_json` returns."""
    text = files("reports").joinpath("report.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def json_safe(value: Any) -> Any:
    """``value`` with NaN and infinities as strings, in everything that it holds."""
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value
