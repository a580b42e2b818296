"""The page in a real browser: nothing fetched, nothing cut off, nothing out of reach."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports.html import render_comparison, write, write_page
from reports.report import Report
from tests.browser import chromium, needs_chromium

SCHEMES = ("light", "dark")

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(
    write_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A page of every kind; the whole run has sounds."""
    import soundfile

    folder = tmp_path_factory.mktemp("pages")
    time = np.arange(2 * 22_050) / 22_050
    soundfile.write(folder / "a.wav", 0.3 * np.sin(2 * np.pi * 440 * time), 22_050)
    broken = {"gate": 0.0, "swapped": 0.0, "contribution": 0.0, "shuffled": 40.5}
    reports = {
        "whole": Report.of(write_folder(folder / "whole", audio=str(folder / "a.wav"))),
        "blocked": Report.of(write_folder(folder / "blocked", **broken)),
        "empty": Report.of(write_folder(folder / "empty", whole=False)),
    }
    made = {k: write(report, folder / f"{k}.html") for k, report in reports.items()}
    both = render_comparison([reports["whole"], reports["blocked"]])
    return made | {"comparison": write_page(both, folder / "comparison.html")}


KINDS = ("whole", "blocked", "empty", "comparison")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_fetched_and_nothing_complains(
    browser: Any, pages: dict[str, Path], kind: str
) -> None:
    page = browser.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[kind].as_uri())
    page.wait_for_load_state("networkidle")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[kind].as_uri()]
    page.close()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_off_on_a_phone(browser: Any, pages: dict[str, Path], kind: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages[kind].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    beyond = page.evaluate(
        """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg'))
           .filter(e => e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert beyond == []
    page.close()


def test_first_screen_says_what_to_do(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["blocked"].as_uri())
    for place in (".verdict h2", ".verdict .command", ".chain li.root"):
        box = page.locator(place).bounding_box()
        assert box is not None and box["y"] + box["height"] <= 900, place
    assert page.locator(".verdict h2").inner_text() == "BLOCKED"
    assert "SP211" in page.locator(".chain li.root").inner_text()
    command = page.locator(".verdict .command")
    command.click()
    assert page.evaluate("getSelection().toString()") == command.inner_text()
    page.close()


def test_chain_runs_down_on_a_phone_and_across_on_a_desk(
    browser: Any, pages: dict[str, Path]
) -> None:
    for width, across in ((390, False), (1280, True)):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(pages["whole"].as_uri())
        links = page.locator(".chain li")
        first, last = links.first.bounding_box(), links.last.bounding_box()
        assert links.count() == 9
        assert (first["y"] == last["y"]) is across
        assert (first["x"] == last["x"]) is not across
        page.close()


def test_sound_plays(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["whole"].as_uri())
    player = page.locator("audio").first
    player.scroll_into_view_if_needed()
    ready, duration, error = player.evaluate(
        """e => { e.muted = true; return e.play().then(() => new Promise(done =>
             e.addEventListener('timeupdate', () =>
               e.currentTime > 0.1 && done([e.readyState, e.duration, e.error])))); }"""
    )
    assert ready >= 2
    assert duration == pytest.approx(2.0, abs=0.15)
    assert error is None
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_accessible_to_all(browser: Any, pages: dict[str, Path], kind: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    # the policy of the page forbids axe's script as it forbids any other
    context = browser.new_context(bypass_csp=True, color_scheme=scheme)
    page = context.new_page()
    page.goto(pages[kind].as_uri())
    if scheme == "light":  # the tables have no colours of their own
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = Axe().run(page).response["violations"]
    serious = {
        v["id"]: [node["html"][:160] for node in v["nodes"][:3]]
        for v in found if v["impact"] in ("serious", "critical")
    }  # fmt: skip
    assert serious == {}
    context.close()


def test_dark_and_light_differ_also_in_the_pictures(browser: Any, pages: dict[str, Path]) -> None:
    colours = {}
    for scheme in SCHEMES:
        page = browser.new_page(color_scheme=scheme)
        page.goto(pages["whole"].as_uri())
        style = "e => getComputedStyle(e)"
        colours[scheme] = (
            page.locator("html").evaluate(f"({style})(document.documentElement).backgroundColor"),
            page.locator(".plot .s-blue").first.evaluate(f"e => ({style})(e).stroke"),
            page.locator(".plot text").first.evaluate(f"e => ({style})(e).fill"),
        )
        page.close()
    light, dark = colours["light"], colours["dark"]
    assert all(a != b for a, b in zip(light, dark, strict=True)), colours


def test_prints_without_what_paper_cannot_do(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 800, "height": 1100})
    page.goto(pages["whole"].as_uri())
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("audio").first.is_visible()
    assert page.locator(".verdict .command").is_visible()
    assert page.pdf()[:5] == b"%PDF-"
    page.close()
