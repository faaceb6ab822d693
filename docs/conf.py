"""Sphinx's settings: ``make docs`` builds the pages of this folder into ``build/docs``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "site"), str(HERE.parent)]

from mbcl import __version__

project = "mbcl"
author = "the authors of mbcl"
copyright = "the authors of mbcl; Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "made_pages",  # docs/site/made_pages.py: pages from the registries, from docstrings and from files outside docs/
    "mathml",  # docs/site/mathml.py
]
root_doc = "index"
exclude_patterns = ["site", "README.md"]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"mbcl {__version__}"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

# The pages are also read on GitHub: plain Markdown, whose headings have the anchors that GitHub gives them.
myst_heading_anchors = 4
highlight_language = "none"

autodoc_typehints = "none"  # the docstrings have shapes, which say more
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Formula", "Cost", "When to use", "Stability", "Reference"]
