"""Templates of pages: everything that is filled in is escaped."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(package: str) -> Environment:
    """The templates of a package, and those that all servers share (`text.html`)."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("orchestrator.pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
