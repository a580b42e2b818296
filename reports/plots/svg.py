"""Matplotlib's SVG made fit for a page: no style attribute, no foreign id, colours that can change.

The page's Content-Security-Policy forbids inline styles, so they become presentation attributes;
a colour of the palette also becomes a class (``s-blue`` strokes, ``f-blue`` fills) with which the
style sheet can replace it in dark mode. Fonts are inherited from the page. Ids are prefixed: those
of matplotlib repeat from figure to figure.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ET

from markupsafe import Markup
from matplotlib.figure import Figure

from reports.plots.palette import name_of

_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_LINK = re.compile(r"url\(#(.+?)\)")
_INHERITED = {"stroke-linejoin": "round", "stroke-linecap": "butt"}  # matplotlib's own style sheet
_DROPPED = {"font-family", "font"}


def to_svg(figure: Figure, key: str, title: str, about: str) -> Markup:
    """The figure as one ``<svg role="img">``.

    Args:
        figure: what was drawn.
        key: what its ids begin with; no other figure on the page may have it.
        title: its name for those who cannot see it.
        about: what it shows, in words with numbers.
    """
    root = ET.fromstring(_draw(figure))
    for parent in list(root.iter()):
        for child in [c for c in parent if _local(c.tag) in ("style", "metadata")]:
            parent.remove(child)
    used = {name for e in root.iter() for name in _links(e)}
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = _attributes(element.attrib, key, used)
    size = root.attrib["viewBox"]
    root.attrib = {
        "class": "plot", "viewBox": size, "role": "img",
        "aria-labelledby": f"{key}-title {key}-about", **_INHERITED,
    }  # fmt: skip
    for place, (tag, text) in enumerate((("title", title), ("about", about))):
        label = ET.Element("title" if tag == "title" else "desc", id=f"{key}-{tag}")
        label.text = text
        root.insert(place, label)
    return Markup(ET.tostring(root, encoding="unicode"))


def _draw(figure: Figure) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # the page's fonts have the glyphs that matplotlib's do not
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return buffer.getvalue()


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _links(element: ET.Element) -> list[str]:
    values = [v for k, v in element.attrib.items() if _local(k) != "id"]
    links = [name for v in values for name in _LINK.findall(v)]
    return links + [v[1:] for k, v in element.attrib.items() if _local(k) == "href"]


def _attributes(found: dict[str, str], key: str, used: set[str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for name, value in found.items():
        match _local(name):
            case "id":
                if value in used:
                    kept["id"] = f"{key}-{value}"
            case "href":
                kept["href"] = f"#{key}-{value[1:]}"
            case "style":
                kept |= _presentation(value)
            case plain:
                value = _LINK.sub(lambda m: f"url(#{key}-{m[1]})", value)
                kept[plain] = _shorter(value) if plain in ("d", "x", "y", "transform") else value
    return kept


def _presentation(style: str) -> dict[str, str]:
    """A style attribute as presentation attributes, and classes for the palette's colours."""
    pairs = (part.partition(":") for part in style.split(";") if part.strip())
    kept = {name.strip(): value.strip() for name, _, value in pairs}
    kept = {name: value for name, value in kept.items() if name not in _DROPPED}
    classes = [
        f"{prefix}-{name}"
        for prefix, kind in (("f", "fill"), ("s", "stroke"))
        if (name := name_of(kept.get(kind, "")))
    ]
    return kept | ({"class": " ".join(classes)} if classes else {})


def _shorter(numbers: str) -> str:
    text = _NUMBER.sub(lambda m: f"{float(m[0]):.2f}", numbers)
    return " ".join(text.split())
