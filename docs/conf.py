"""How Sphinx builds the site: `make docs`, into build/docs."""

import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "safe-probe"
copyright = "Apache-2.0"
release = metadata.version("safe-probe")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
suppress_warnings = ["toc.not_included"]  # a hundred findings stay out of the side bar

html_theme = "furo"
html_title = "safe-probe"
html_show_sphinx = False

# headings can be linked to, as GitHub does it
myst_heading_anchors = 4
autodoc_member_order = "bysource"
