"""`make docs`: the site builds without a warning, and every link leads somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import safe_probe
from tests.docs.pages import PAGES, ROOT

_LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCUMENTS = (*PAGES, "SECURITY.md", "CHANGELOG.md", "safe/embedded/MODEL_CARD.md")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the command of the Makefile."""
    for package in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the extra 'docs': {package} is not installed")
    (command,) = re.findall(r"-m (sphinx .*) docs build/docs$", makefile(), re.MULTILINE)
    built = tmp_path_factory.mktemp("site")
    trees = ["-d", str(tmp_path_factory.mktemp("trees"))]
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), *trees, "docs", str(built)], cwd=ROOT,
        check=False, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return built


def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_site_has_every_page_and_every_public_name(site: Path) -> None:
    pages = [file.relative_to(ROOT / "docs") for file in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 100
    for page in pages:
        assert (site / page.with_suffix(".html")).is_file(), page
    reference = (site / "api.html").read_text(encoding="utf-8")
    for name in safe_probe.__all__:
        assert f'id="safe_probe.{name}"' in reference, f"{name} is not in docs/api.md"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Also on GitHub: files of the repository, and headings by GitHub's names for them."""
    here = ROOT / document
    for link in _LINK.findall(here.read_text(encoding="utf-8")):
        target, _, heading = link.partition("#")
        if ":" in target:
            continue  # the web; nothing here asks it
        file = (here.parent / target).resolve() if target else here
        assert file.exists() and file.is_relative_to(ROOT), f"{document}: {link}"
        if heading:
            assert heading in headings(file), f"{document}: {link}"


def headings(file: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
