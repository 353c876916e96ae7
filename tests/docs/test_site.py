"""The site of the pages is built without the network, and without a warning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documented import PAGES, ROOT

from orchestrator import api


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    out = tmp_path_factory.mktemp("site")
    done = _build(ROOT / "docs", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


def _build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Run Sphinx with warnings as errors, and with a proxy that nobody serves."""
    dead = "http://127.0.0.1:9"
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", source, out],
        env={**os.environ, "http_proxy": dead, "https_proxy": dead, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def test_every_page_is_in_the_site_and_in_its_search(site: Path) -> None:
    names = {Path(page).stem for page in PAGES if page.startswith("docs/")}
    assert {path.stem for path in site.glob("*.html")} >= names
    text = (site / "searchindex.js").read_text()
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    assert names <= set(index["docnames"])


def test_the_reference_has_every_name_of_the_interface(site: Path) -> None:
    page = (site / "api.html").read_text()
    for name in api.__all__:
        assert f'id="orchestrator.api.{name}"' in page, name
    for name in ("metrics", "evaluation", "rollouts", "models"):
        assert f'id="orchestrator.api.Run.{name}"' in page, name


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"]+)"', page.read_text())
        assert [each for each in loaded if each.startswith(("http", "//"))] == [], page.name


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of pages with our settings."""
    source = tmp_path / "docs"
    (source / "_static").mkdir(parents=True)
    (source / "_static" / "site.css").touch()
    (source / "conf.py").write_text((ROOT / "docs" / "conf.py").read_text())
    return source


def test_a_dead_link_ends_the_build(own: Path, tmp_path: Path) -> None:
    (own / "index.md").write_text("# One\n\n[two](two.md)\n")
    done = _build(own, tmp_path / "out")
    assert done.returncode != 0
    assert "two" in done.stderr


def test_pages_that_the_index_forgets_are_listed_and_links_to_the_repository_named(
    own: Path, tmp_path: Path
) -> None:
    (tmp_path / "FILE.md").touch()
    (own / "index.md").write_text("# One\n\n[the file](../FILE.md)\n")
    (own / "forgotten.md").write_text("# Forgotten page\n")
    done = _build(own, tmp_path / "out")
    assert done.stderr == ""
    page = (tmp_path / "out" / "index.html").read_text()
    assert ">FILE.md</span>" in page
    assert 'href="forgotten.html"' in page
