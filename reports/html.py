"""The report as one HTML file: no script, nothing from elsewhere, readable in ten years.

All texts go through Jinja's autoescape and lose the characters that steer a reader's eye or break
a file (control characters, bidirectional marks, lone surrogates). The Content-Security-Policy
allows the one style sheet of the page, by its hash, and embedded pictures and sounds, nothing else.
"""

import base64
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from configs.plain_text import plain
from reports.page import Page
from reports.plots.palette import PALETTE
from reports.printed import number
from reports.samples import without_sound

if TYPE_CHECKING:
    from reports.report import Report

MOST_BYTES = 3_000_000
"""A page is never larger: sounds are left out, and if need be texts are shortened."""
MOST_TEXT, SHORT_TEXT = 2000, 150
"""Characters of one text on the page; what is longer ends with how much was left out."""
TOO_LARGE = "The clips' sounds are left out: the page would be larger than 3 MB with them."
_SOUND = re.compile(r"data:audio/[a-z]+;base64,[A-Za-z0-9+/=]+")
_TEMPLATES = Path(__file__).parent / "templates"


def render(report: "Report", *, audio: bool = True) -> str:
    """The page of one run; the same run gives the same bytes.

    Args:
        report: the judged run.
        audio: whether to embed the sounds of the sampled clips.
    """
    page = Page.of(report, audio=audio)
    silent = replace(page, samples=without_sound(page.samples), sound_note=TOO_LARGE)
    attempts = ((page, MOST_TEXT), (silent, MOST_TEXT), (silent, SHORT_TEXT))
    for shown, length in attempts:
        text = _fill("report.html", length, page=shown, report=report, run=report.run)
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def write(report: "Report", path: Path | str) -> Path:
    """Write the page; a reader sees the old file or the new one, never half of it.

    Args:
        report: the judged run.
        path: of the file; its folder is made when it is not there.

    Returns:
        The file's path.
    """
    return write_page(render(report), path)


def write_page(text: str, path: Path | str) -> Path:
    """Write a rendered page at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def render_comparison(reports: "Sequence[Report]") -> str:
    """The page that holds runs side by side; the first is what the others are held against.

    Raises:
        ReportError: fewer than two of them.
    """
    from reports.comparison_page import ComparisonPage

    page = ComparisonPage.of(reports)
    text = _fill("comparison.html", MOST_TEXT, page=page)
    if len(text.encode()) > MOST_BYTES:
        text = _fill("comparison.html", SHORT_TEXT, page=page)
    return text


def notebook(report: "Report") -> str:
    """The page in a frame of its own, so that its style and the notebook's keep apart."""
    page = escape(render(report, audio=False), quote=True)
    return (
        f'<iframe srcdoc="{page}" sandbox title="safe-probe report" width="100%" height="720" '
        'frameborder="0"></iframe>'
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fill(template: str, length: int, **values: Any) -> str:
    css = _style()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment(length).get_template(template)
    return page.render(css=css, policy=policy, **values) + "\n"


@cache
def _environment(length: int) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=partial(_printable, length=length),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["whole"] = _whole
    return environment


@cache
def _style() -> Markup:
    """The style sheet, with the palette of the plots as variables and classes."""

    def variables(shade: str) -> str:
        return " ".join(f"--{name}: {getattr(c, shade)};" for name, c in PALETTE.items())

    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables('dark')} }} }}"
    classes = "\n".join(
        f".plot .s-{name} {{ stroke: var(--{name}); }} .plot .f-{name} {{ fill: var(--{name}); }}"
        for name in PALETTE
    )
    own = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    light = f":root {{ {variables('light')} }}"
    return Markup("\n".join((light, dark, own, classes)))


def _whole(address: str) -> Markup:
    """An embedded sound, which is not shortened; nothing in it means anything in HTML."""
    assert _SOUND.fullmatch(address)
    return Markup(address)


def _printable(value: object, length: int) -> object:
    """What the template prints: text made harmless and of bearable length."""
    if isinstance(value, Markup):
        return value
    text = plain(value)
    if len(text) <= length:
        return text
    return f"{text[:length]}... ({len(text) - length:,} more characters)"
