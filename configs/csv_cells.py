"""Cells of CSV files that a spreadsheet must not take for formulas."""

import re
from typing import TypeVar

Cell = TypeVar("Cell")

# Numbers ("-1.5e-3") and YouTube's ids ("-0xzrMun0Rs", with a start "-0xzrMun0Rs_30") also begin
# with a sign, and can do nothing.
_NUMBER, _ID = r"[\d.]+(?:[eE][+-]?\d+)?", r"[\w-]{10}(?:_[\d.]+)?"
_FORMULA = re.compile(rf"'*(?![+-](?:{_NUMBER}|{_ID})\Z)[=+\-@\t\r]")


def plain_cell(value: Cell) -> Cell | str:
    """Return text that a spreadsheet would calculate with an apostrophe in front, else the value.

    That is text that begins with = + - @, a tab or a carriage return, plain ids and numbers aside.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def original_cell(text: str) -> str:
    """Return what `plain_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
