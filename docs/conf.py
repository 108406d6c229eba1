"""The documentation site: `scripts/docs` builds it, without a network."""

from __future__ import annotations

from sphinx.application import Sphinx

from gradscope import __version__

project = "gradscope"
author = "The gradscope authors"
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "numpydoc",
    "myst_nb",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "gradscope"
html_show_sphinx = False
html_show_copyright = False

# Pages are read in the repository as well: links go to files and headings, and both are checked.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpicky = True

# What the notebooks show is what the last run of `scripts/docs --write` left in them; tests run them again.
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say the types, with shapes and units
autodoc_mock_imports = ["lightning", "pytorch_lightning", "transformers"]
numpydoc_show_class_members = False


def _readme_is_a_page(app: Sphinx, page: str, source: list[str]) -> None:
    """README lies outside of the site, and is one of its pages."""
    source[0] = source[0].replace("](../../README.md)", "](../readme.md)")


def setup(app: Sphinx) -> None:
    """Register what this site adds."""
    app.connect("source-read", _readme_is_a_page)
