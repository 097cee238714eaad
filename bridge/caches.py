"""Where caches lie: everything in there is derived and can be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["PARTS", "cache_dir"]

PARTS = {"registry": "runs-*.sqlite*", "view": "*-????????????????"}
"""The folders in there, and what in them is ours: what `bridge cache` shows and empties."""


def cache_dir() -> Path:
    """The bridge's folder of caches: BRIDGE_CACHE_DIR, else `registry-bridge` in XDG_CACHE_HOME or ~/.cache.

    It may not exist yet. Raises RuntimeError where there is no home to be found.
    """
    own = os.environ.get("BRIDGE_CACHE_DIR")
    if own:
        return Path(own).expanduser()  # RuntimeError also for ~somebody who is not there
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules say that a relative path there is to be ignored.
    base = Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "registry-bridge"
