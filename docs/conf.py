"""Sphinx's settings: `sphinx-build -W -b html docs docs/_build/html`, with `pip install -e ".[docs]"`."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "bplightning"
version = release = version_of("bplightning")
copyright = "the bplightning authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to headings, as on the code's own pages

html_theme = "furo"
html_title = "bplightning"
html_static_path: list[str] = []

autodoc_typehints = "none"  # the constructors' signatures have them
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "code"  # docstrings are in Markdown's habit of one backtick
