"""Foreign text in every place of a page, opened in a real browser: it is shown, and it is text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.html import render, render_comparison, write_page
from reports.report import Report
from tests.browser import chromium, needs_chromium
from tests.hostile import HOSTILE
from tests.reports.conftest import write_whole_run
from tests.reports.spoiled import marks, shown_as, spoiled

ALLOWED = {"a", "article", "audio", "b", "body", "caption", "circle", "clippath", "code", "dd",
           "defs", "desc", "details", "div", "dl", "dt", "figcaption", "figure", "footer", "g",
           "h1", "h2", "h3", "head", "header", "html", "li", "link", "main", "meta", "nav", "ol",
           "p", "path", "pre", "rect", "section", "span", "style", "summary", "svg", "table",
           "tbody", "td", "text", "th", "thead", "title", "tr", "tspan", "ul", "use"}  # fmt: skip
LOOK = """() => {
  const all = [...document.querySelectorAll('*')], shown = [];
  for (const e of all) for (const n of e.childNodes) if (n.nodeType === 3) shown.push(n.data);
  for (const e of all) for (const a of e.attributes) shown.push(a.value);
  const active = all.flatMap(e => [...e.attributes]).filter(a => a.name.startsWith('on')
    || (['href', 'src', 'srcset', 'action', 'data', 'xlink:href'].includes(a.name)
        && !a.value.startsWith('#') && a.value !== 'data:,'));
  for (const kind of ['mouseover', 'click', 'focus', 'toggle', 'pointerenter'])
    for (const e of all) e.dispatchEvent(new Event(kind));
  return {shown, names: [...new Set(all.map(e => e.localName.toLowerCase()))],
          active: active.map(a => `${a.name}=${a.value}`), title: document.title,
          scripts: document.scripts.length};
}"""

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def look(browser: Any, file: Path) -> tuple[dict[str, Any], list[str]]:
    """What a page holds, and everything that it did: requests, dialogs, navigations, messages."""
    context = browser.new_context(bypass_csp=True)  # the escaping must do without the policy
    page = context.new_page()
    did: list[str] = []
    page.on("request", lambda request: did.append(f"request {request.url[:80]}"))
    page.on("dialog", lambda dialog: (did.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("popup", lambda other: did.append(f"popup {other.url}"))
    page.on("framenavigated", lambda frame: did.append(f"navigation {frame.url}"))
    page.on("pageerror", lambda error: did.append(f"script {error}"))
    page.on("console", lambda message: did.append(f"console {message.text}"))
    page.goto(file.as_uri())
    found = page.evaluate(LOOK)
    page.wait_for_load_state("networkidle")
    context.close()
    own = (f"request {file.as_uri()}"[:88], f"navigation {file.as_uri()}")
    return found, [what for what in did if what not in own and " data:audio/" not in what]


@pytest.mark.sizes(10, 1)
def test_hostile_text_in_every_place(size: int, browser: Any, figure: Any, tmp_path: Path) -> None:
    """``size``: pieces of hostile text in one place; one alone cannot hide behind another."""
    other = Report.of(write_whole_run(tmp_path / "other"))
    wrong: list[str] = []

    def pages(number: int, bad: str) -> Iterator[tuple[str, list[str], str]]:
        """Open both pages; kind, what is shown, and the title."""
        report = spoiled(tmp_path / str(number), bad)
        both = {"run": render(report), "comparison": render_comparison([other, report])}
        for kind, text in both.items():
            found, did = look(browser, write_page(text, tmp_path / f"{number}-{kind}.html"))
            wrong.extend(f"{kind}, {bad!r}: {what}" for what in (*did, *found["active"]))
            wrong.extend(f"{kind}, {bad!r}: <{name}>" for name in set(found["names"]) - ALLOWED)
            yield kind, found["shown"], found["title"]

    places: dict[str, set[str]] = {}
    for kind, shown, title in pages(0, "tame"):
        places[kind] = marks("\n".join(shown))
        assert "name" in marks(title)
    for start in range(0, len(HOSTILE), size):
        bad = " ".join(HOSTILE[start : start + size])
        for kind, shown, _ in pages(start + 1, bad):
            wrong += [
                f"{kind}, {bad!r}: not shown as it is in place {place}"
                for place in places[kind]
                if not any(good in text for good in shown_as(bad, place) for text in shown)
            ]
    figure(
        f"{len(HOSTILE)} hostile texts, {size} at a time, in {len(places['run'])} places of a "
        f"page and {len(places['comparison'])} of a comparison, in Chromium: {len(wrong)} scripts, "
        "dialogs, requests, navigations, foreign elements or texts that are not what was given"
    )
    assert wrong == []
    assert len(places["run"]) > 50
