"""The documentation site: `scripts/docs` builds it, without a network."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

from gradscope import __version__

project = "gradscope"
author = "The gradscope developers"
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "numpydoc",
    "myst_nb",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
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


#: Pages of the site that lie beside docs/: in the repository the page here is a link to them.
OUTSIDE = {
    "readme": "README.md",
    "readme_zh": "README.zh.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}


def _take_in(app: Sphinx, page: str, source: list[str]) -> None:
    """Let a page from outside stand where its link is, and links to it lead there."""
    text = source[0]
    if page in OUTSIDE:
        text = (Path(app.srcdir).parent / OUTSIDE[page]).read_text(encoding="utf-8").replace("](docs/", "](")
    for inside, outside in OUTSIDE.items():
        to_root = "../" * page.count("/")
        for link in (outside, f"../{to_root}{outside}"):
            text = text.replace(f"]({link})", f"]({to_root}{inside}.md)")
    source[0] = text


def setup(app: Sphinx) -> None:
    """Register what this site adds."""
    app.connect("source-read", _take_in)
