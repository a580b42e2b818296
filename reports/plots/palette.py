"""Colours of the plots: told apart by people with any colour vision, on white and on dark paper.

The hues are those of Okabe and Ito (2008), darkened for white and lightened for dark paper so that
each has a contrast of at least 3 with its paper. A plot is drawn in the colours for white; the page
turns them into style sheet variables, and colour is never the only difference between two lines.
"""

from typing import NamedTuple


class Colour(NamedTuple):
    """One colour on both papers."""

    light: str
    dark: str


PALETTE = {
    "ink": Colour("#1f2328", "#e6e9ed"),
    "grey": Colour("#656d76", "#9aa4b0"),
    "faint": Colour("#d8dee4", "#363d47"),
    "blue": Colour("#0072b2", "#5db8f0"),
    "red": Colour("#c44e00", "#ff9552"),
    "green": Colour("#00805d", "#3fcf9f"),
    "purple": Colour("#a8478f", "#e49ad0"),
    "gold": Colour("#856600", "#e2c63d"),
    "sky": Colour("#2f7f9e", "#8fd3ee"),
}
"""Name to colour; ``ink`` is text, ``grey`` secondary text, ``faint`` lines that should recede."""

INK, GREY, FAINT, BLUE, RED, GREEN, PURPLE, GOLD, SKY = (c.light for c in PALETTE.values())

SERIES = (BLUE, RED, PURPLE, GREEN, GOLD, SKY)
"""Colours of lines beside each other, in this order."""
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
"""Line styles; from the seventh line on the colours begin anew with the next style."""
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Markers that go with the colours."""


def name_of(colour: str) -> str | None:
    """The name of a colour as it was drawn; None for colours of no fixed meaning."""
    return _NAMES.get(colour.lower())


_NAMES = {colour.light: name for name, colour in PALETTE.items()}
