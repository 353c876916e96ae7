"""What an installed package needs to draw the page is declared as its data."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import orchestrator.report

ROOT = Path(__file__).parents[4]


def test_every_asset_of_the_page_is_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["orchestrator.report"]
    folder = Path(orchestrator.report.__file__).parent
    assets = [str(file.relative_to(folder)) for file in (folder / "assets").iterdir()]
    assert sorted(assets) == ["assets/page.css", "assets/page.html", "assets/page.js"]
    assert all(any(fnmatch(asset, pattern) for pattern in patterns) for asset in assets)
