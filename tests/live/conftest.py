"""Each test has its own cache, and a live view that scans at every look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge import live, plugins

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own cache, and let each look wait for a scan."""
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    for name, value in {"SCAN_PERIOD": 0.0, "SCAN_PAUSE": 0.0, "STALE_AFTER": -1.0, "SCAN_WAIT": 30.0}.items():
        monkeypatch.setattr(live, name, value)
    plugins.shared_store.cache_clear()
