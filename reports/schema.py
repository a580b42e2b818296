"""The JSON Schema of report.json, which comes with the package."""

import json
from importlib.resources import files
from typing import Any


def report_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of what :meth:`reports.report.Report.to_json` returns."""
    text = files("reports").joinpath("report.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
