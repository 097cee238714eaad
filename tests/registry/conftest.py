"""Give each test its own cache directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache directory."""
    path = tmp_path / "cache"
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(path))
    return path
