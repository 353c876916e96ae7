"""Makes this folder importable, so that every test finds `fakes`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rows that tests keep go to a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REHEARSAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
