"""The site of these pages: `make docs` builds it into docs/_build."""

import re
from importlib.metadata import version as installed
from pathlib import Path

project = "Rehearsal"
author = "the Rehearsal authors"
copyright = author  # noqa: A001  Sphinx names it
release = installed("rehearsal")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Rehearsal {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#245593", "color-brand-content": "#245593"},
}
smartquotes = False  # "" is a value
default_role = "code"  # of docstrings
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"

_HOME = Path(__file__).parent
_OUTSIDE = re.compile(r"\[([^\]\n]+)\]\((\.\./[\w./-]+)(#[\w-]+)?\)")


def _named(link: re.Match[str]) -> str:
    """The name of a page or folder of the repository that is no page of the site."""
    target = _HOME / link[2]
    is_outside = target.is_dir() or (target.is_file() and target.suffix == ".md")
    return f"`{link[2].removeprefix('../')}`" if is_outside else link[0]


def _more(index: str) -> str:
    """A list of the pages that the index does not name."""
    named = {"index", *(line.strip() for line in index.splitlines())}
    others = sorted(page.stem for page in _HOME.glob("*.md") if page.stem not in named)
    lines = ["", "", "```{toctree}", ":caption: More", ":maxdepth: 1", "", *others, "```", ""]
    return "\n".join(lines) if others else ""


def setup(app) -> None:
    """Called by Sphinx: links that only a checkout can follow become names; no page is left out."""

    def read(_app, page: str, source: list[str]) -> None:
        source[0] = _OUTSIDE.sub(_named, source[0]) + (_more(source[0]) if page == "index" else "")

    app.connect("source-read", read)
